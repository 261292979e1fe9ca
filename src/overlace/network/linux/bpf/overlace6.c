// SPDX-License-Identifier: Apache-2.0
/* The same data path for IPv6 inside the overlay. The programs of overlace.c hand it every IPv6 packet. */
#define OVERLACE_IPV6
#include "overlace.c"
