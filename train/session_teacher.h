/* A session's live teacher. */
#ifndef CMKD_TRAIN_SESSION_TEACHER_H
#define CMKD_TRAIN_SESSION_TEACHER_H
#include "train/session.h"

/* The teacher of the session's options on the images of `data`, whose views are drawn by `policy`. */
cmkd_status cmkd_session_open_teacher(const cmkd_session *session, const cmkd_dataset *data, cmkd_policy policy,
                                      cmkd_teacher **out, cmkd_error *err);
#endif
