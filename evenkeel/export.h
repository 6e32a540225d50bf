// EK_API marks what the library shows: everything is compiled hidden, and only what carries this
// mark is public.
#pragma once

#define EK_API __attribute__((visibility("default")))
