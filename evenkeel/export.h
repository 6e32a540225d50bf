// EK_API marks what the library shows: everything is compiled hidden, and only what carries this
// mark is public.
#pragma once

#define EK_API __attribute__((visibility("default")))
// What stands inside of a public class and is not public itself.
#define EK_HIDDEN __attribute__((visibility("hidden")))
