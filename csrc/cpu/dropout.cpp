#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_dropout(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
