// The table of kernels: one struct of function pointers per operator family. Operators call through
// the table of the active ISA level; a family's kernel files fill their own entries.
#pragma once

#include "ops/activation.h"
#include "ops/conv.h"
#include "ops/copy.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/interpolate.h"
#include "ops/loss.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/optim.h"
#include "ops/pool.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "ops/softmax.h"

namespace fastnn {

struct Slots {
  ActivationSlots activation;
  ConvSlots conv;
  CopySlots copy;
  CurveSlots curves;
  DropoutSlots dropout;
  ElementwiseSlots elementwise;
  InterpolateSlots interpolate;
  LossSlots loss;
  MatmulSlots matmul;
  NormSlots norm;
  OptimSlots optim;
  PoolSlots pool;
  RandomSlots random;
  ReduceSlots reduce;
  ShapeSlots shape;
  SoftmaxSlots softmax;
};

// Kernels of the active ISA level.
const Slots& cpu_slots();

}  // namespace fastnn
