/* SPDX-License-Identifier: Apache-2.0 */
/* How much a container may send: a QOS policy's bytes per second, enforced where its packets enter the switch. */
#pragma once
#include "maps.h"

#define BURST_NS 50000000ull /* what may be sent at once: 50 ms of the rate, ... */
#define BURST_BYTES 131072 /* ... and this at least, two of the largest merged frames */

/* Whether one more, worth `cost` ns of the rate, is more than may be sent `at` this time. The state is one number, the time
 * at which all that was let through would have been sent at the rate (the virtual scheduling form of ITU-T I.371's GCRA),
 * so that processors need no lock: who loses the race for it looks again. */
INLINE int over_rate(void *meter, const __u32 *key, __u64 at, __u64 cost, __u64 burst)
{
	__u64 *sent = bpf_map_lookup_elem(meter, key), zero = 0;

	if (!sent) {
		bpf_map_update_elem(meter, key, &zero, BPF_NOEXIST);
		sent = bpf_map_lookup_elem(meter, key);
		if (!sent)
			return 1;
	}
	for (int i = 0; i < 8; i++) {
		__u64 before = *sent, from = before > at ? before : at;

		if (from - at > burst)
			return 1;
		if (__sync_val_compare_and_swap(sent, before, from + cost) == before)
			return 0;
	}
	return 1;
}

/* Whether this frame is more than the port's limit allows. */
NOINLINE int over_limit(struct __sk_buff *ctx)
{
	__u32 ifindex = ctx->ifindex;
	__u64 *rate = bpf_map_lookup_elem(&limits, &ifindex), cost, burst;

	if (!rate || !*rate)
		return 0;
	cost = (__u64)ctx->len * 1000000000ull / *rate;
	burst = BURST_BYTES * 1000000000ull / *rate;
	if (burst < BURST_NS)
		burst = BURST_NS;
	return over_rate(&meters, &ifindex, bpf_ktime_get_ns(), cost, burst);
}
