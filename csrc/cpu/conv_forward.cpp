#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_conv_forward(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
