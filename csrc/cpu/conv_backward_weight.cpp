#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_conv_backward_weight(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
