/* Names of the classes, in the order of the labels. */
#ifndef CMKD_FORMATS_IMAGES_CLASS_NAMES_H
#define CMKD_FORMATS_IMAGES_CLASS_NAMES_H

extern const char *const cmkd_names_digits[10], *const cmkd_names_fashion[10], *const cmkd_names_cifar10[10],
                                                                                   *const cmkd_names_cifar100[100];
#endif
