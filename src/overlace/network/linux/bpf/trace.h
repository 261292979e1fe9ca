/* SPDX-License-Identifier: Apache-2.0 */
/* Where a marked packet was seen and what became of it, for `overlace trace --live`. A packet is marked by a code point
 * nothing else uses and an IP identification the daemon has armed; everything else costs one comparison. */
#pragma once

#define TRACE_TOS 0xfc /* DSCP 63, for local use: RFC 2474 section 6 */
#define TRACE_MARK 0x7ace
#define TRACE_SEEN 0xffffffff
#define TRACE_RECORDS 16

struct sighting {
	__u64 at; /* ns, monotonic clock of this host */
	__u32 ifindex;
	__u32 reason; /* enum reason, or TRACE_SEEN: it came by, with the fields below */
	addr_t saddr, daddr;
	__be16 sport, dport;
	__u32 vni;
};

struct traced {
	__u32 count, pad;
	struct sighting sightings[TRACE_RECORDS];
};

MAP(BPF_MAP_TYPE_HASH, traces, __u32, struct traced, 256, BPF_F_NO_PREALLOC);

/* The next free record of packet `id`, if the daemon waits for it. */
INLINE struct sighting *trace_record(struct __sk_buff *ctx, __u32 id, __u32 reason)
{
	struct traced *t = bpf_map_lookup_elem(&traces, &id);
	struct sighting *s;
	__u32 n;

	if (!t)
		return 0;
	n = __sync_fetch_and_add(&t->count, 1);
	if (n >= TRACE_RECORDS)
		return 0;
	s = &t->sightings[n];
	s->at = bpf_ktime_get_ns();
	s->ifindex = ctx->ifindex;
	s->reason = reason;
	return s;
}

/* A marked packet was read: remember whose verdict the next one is. */
NOINLINE int trace_seen(struct __sk_buff *ctx, __u32 id, __u32 vni, const struct pkt *p)
{
	struct sighting *s = trace_record(ctx, id, TRACE_SEEN);

	if (!p || !s)
		return 0;
	ctx->cb[1] = (__u32)TRACE_MARK << 16 | id;
	s->saddr = p->saddr;
	s->daddr = p->daddr;
	s->sport = p->sport;
	s->dport = p->dport;
	s->vni = vni;
	return 0;
}

NOINLINE int trace_end(struct __sk_buff *ctx, __u32 reason)
{
	trace_record(ctx, ctx->cb[1] & 0xffff, reason);
	ctx->cb[1] = 0;
	return 0;
}
