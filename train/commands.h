/* The commands of cmkd-train; each takes its own argv (argv[0] is the command's name) and returns the exit status. */
#ifndef CMKD_TRAIN_COMMANDS_H
#define CMKD_TRAIN_COMMANDS_H
int cmkd_command_train(int argc, char **argv);
int cmkd_command_eval(int argc, char **argv);
int cmkd_command_nets(int argc, char **argv);
int cmkd_command_onnx(int argc, char **argv);
int cmkd_command_recipes(int argc, char **argv);
#endif
