#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_conv_backward_data(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
