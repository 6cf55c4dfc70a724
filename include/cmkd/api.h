/* What every public header starts with: which functions are public, and which version this is. */
#ifndef CMKD_API_H
#define CMKD_API_H
#ifdef __cplusplus
extern "C" {
#endif

/* Marks a public function. The library is compiled with hidden visibility and exports what is marked, nothing else. */
#if defined(__GNUC__)
#define CMKD_API __attribute__((visibility("default")))
#else
#define CMKD_API
#endif

/* Version of these headers, semantic: within one major version programs keep compiling and linking. (Before 1.0 a new
 * minor version may break them.) */
#define CMKD_VERSION "0.1.0"
#define CMKD_VERSION_MAJOR 0
#define CMKD_VERSION_MINOR 1
#define CMKD_VERSION_PATCH 0

/* The version of the library that the program runs with, like CMKD_VERSION. Static storage. */
CMKD_API const char *cmkd_version(void);

#ifdef __cplusplus
}
#endif
#endif
