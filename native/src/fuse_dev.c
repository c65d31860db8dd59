#include "cl_internal.h"
void fuse_complete(struct req *r, int64_t result) { (void)r; (void)result; }
void fuse_readable(struct vst_cl *cl) { (void)cl; }
void fuse_stop(struct vst_cl *cl) { (void)cl; }
