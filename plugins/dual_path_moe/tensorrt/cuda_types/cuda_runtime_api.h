// The two types that TensorRT's headers take from CUDA's header of this name, for machines without a CUDA toolkit.
#pragma once

struct CUstream_st;
struct CUevent_st;
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
