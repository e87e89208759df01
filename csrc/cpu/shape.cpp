#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_shape(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
