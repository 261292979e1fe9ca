/* SPDX-License-Identifier: Apache-2.0 */
/* Who may open connections to and from an endpoint. vfp/access.py is the same in Python, and the definition. */
#pragma once
#include "packet.h"

/* `set`: the field of a rule that else holds an address, and its mask behind it. */
LOOKUP int in_set(const addr_t *set, const addr_t *addr)
{
	const __u32 *halves = (const __u32 *)set;
	struct set_key key = { .prefix = 64 + ADDR_BITS, .set = { halves[0], halves[1] }, .addr = *addr };

	return bpf_map_lookup_elem(&address_sets, &key) != 0;
}

struct asked { /* about a connection; ports in host order */
	__u64 list;
	addr_t local, remote;
	__u16 local_port, remote_port;
	__u16 skipped; /* tier whose rest is left out */
	__u16 rule, passed; /* as in struct judged */
	__u8 proto, answer;
	__u32 ifindex, begins, more_packets; /* what rules that pass count, this packet beside */
	__u64 bytes, more_bytes;
};

/* What one processor works with while it has a packet, and what would not fit on the stack. */
struct scratch {
	struct judged judged[2]; /* by enum direction: the rules this packet counted for, if any */
	struct access_key key;
	struct asked asked;
	struct hit hit;
	struct unified_flow unified;
	__u32 flood_vni, flood_remote; /* flood.h: to other hosts as well */
	addr_t flood_sender;
};

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, scratches, __u32, struct scratch, 1, 0);

INLINE struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

#define BEGINS 0x80000000 /* one packet that begins a connection, or would have */

/* Packets count for a rule of the filtered endpoint at `ifindex`; `rule` as in struct judged, `packets` may be BEGINS. */
NOINLINE int count_hits(__u64 list, __u32 ifindex, __u32 rule, __u32 packets, __u64 bytes)
{
	struct hit_key key = { .list = list, .ifindex = ifindex, .rule = rule - 1 };
	struct scratch *s = scratch();
	struct hit *h;

	if (!rule || !s)
		return 0;
	h = bpf_map_lookup_elem(&hits, &key);
	if (!h) {
		s->hit.connections = packets == BEGINS;
		s->hit.packets = packets == BEGINS ? 1 : packets;
		s->hit.bytes = bytes;
		return bpf_map_update_elem(&hits, &key, &s->hit, BPF_NOEXIST);
	}
	if (packets == BEGINS) {
		h->connections += 1;
		packets = 1;
	}
	h->packets += packets;
	h->bytes += bytes;
	return 0;
}

struct asking {
	struct access_list *list;
	struct asked *a;
};

/* One rule: 1 ends the search. */
static long ask_rule(__u32 i, struct asking *ctx)
{
	struct asked *a = ctx->a;
	struct access_rule *r;

	if (i >= ACCESS_RULES || i >= ctx->list->count)
		return 1;
	r = &ctx->list->rules[i];
	if (r->tier == a->skipped)
		return 0;
	if (r->proto && r->proto != a->proto)
		return 0;
	if (a->local_port < r->local_low || a->local_port > r->local_high || a->remote_port < r->remote_low ||
	    a->remote_port > r->remote_high)
		return 0;
	if (r->sets & SET_LOCAL ? !in_set(&r->local, &a->local) : !same_masked(&a->local, &r->local, &r->local_mask))
		return 0;
	if (r->sets & SET_REMOTE ? !in_set(&r->remote, &a->remote) :
				   !same_masked(&a->remote, &r->remote, &r->remote_mask))
		return 0;
	if (r->action == RULE_PASS) {
		a->skipped = r->tier;
		a->passed = a->passed ? MANY_RULES : i + 1;
		if (a->begins)
			count_hits(a->list, a->ifindex, i + 1, BEGINS, a->bytes);
		else
			count_hits(a->list, a->ifindex, i + 1, 1 + a->more_packets, a->bytes + a->more_bytes);
		return 0;
	}
	a->rule = i + 1;
	a->answer = r->action == RULE_ALLOW;
	return 1;
}

/* What the list says of the connection `scratch()->key`: 1 yes, 0 no. The packet counts for every rule that has a say, and
 * scratch()->asked has their places. */
NOINLINE int judge(__u64 list, __u32 ifindex, __u32 bytes, __u32 begins)
{
	struct scratch *s = scratch();
	struct asking ctx = { .list = bpf_map_lookup_elem(&access_lists, &list) };
	struct asked *a;

	if (!s)
		return 0;
	ctx.a = a = &s->asked;
	a->list = list;
	a->local = s->key.local;
	a->remote = s->key.remote;
	a->local_port = bpf_ntohs(s->key.local_port);
	a->remote_port = bpf_ntohs(s->key.remote_port);
	a->proto = s->key.proto;
	a->skipped = 256;
	a->rule = NO_RULE;
	a->passed = a->answer = 0;
	a->ifindex = ifindex;
	a->bytes = bytes;
	a->begins = begins;
	if (ctx.list)
		bpf_loop(ACCESS_RULES, ask_rule, &ctx, 0);
	count_hits(list, ifindex, a->rule, begins ? BEGINS : 1, bytes);
	return a->answer;
}

/* What took the packet's way since it was last decided counts for the rules it was decided by: the fast path has no part
 * in it. Where several rules passed, judge() finds them again and counts `more` for them. */
NOINLINE int count_later(const struct pkt *p, __u32 ifindex, __u32 direction)
{
	struct scratch *s = scratch();
	struct unified_flow *u;
	struct judged *j;
	__u64 packets, bytes;

	if (!p || !s)
		return 0;
	s->asked.more_packets = s->asked.more_bytes = 0;
	u = bpf_map_lookup_elem(&unified_flows, &p->came);
	if (!u)
		return 0;
	j = direction == GOES_OUT ? &u->judged[GOES_OUT] : &u->judged[GOES_IN];
	packets = u->packets - j->packets;
	bytes = u->bytes - j->bytes;
	if (!j->rule || !packets)
		return 0;
	j->packets = u->packets;
	j->bytes = u->bytes;
	count_hits(j->list, ifindex, j->rule, packets, bytes);
	if (j->passed == MANY_RULES) {
		s->asked.more_packets = packets;
		s->asked.more_bytes = bytes;
	} else if (j->passed) {
		count_hits(j->list, ifindex, j->passed, packets, bytes);
	}
	return 0;
}

/* Where the socket level chose the backend (choice.h), rules are asked about the service, as they are on its way there. */
LOOKUP void name_asked_for(struct access_key *key)
{
	struct flow_key chosen = {
		.scope = key->vni, .saddr = key->local, .daddr = key->remote, .sport = key->local_port,
		.dport = key->remote_port, .proto = key->proto,
	};
	struct flow *f = bpf_map_lookup_elem(&flows, &chosen);

	if (f && f->kind == F_CHOSEN) {
		key->remote = f->daddr;
		key->remote_port = f->dport;
	}
}

/* Whether the packet may pass the filtered endpoint at `port`, the interface `ifindex`. What an allowed connection carries
 * passes both ways, ICMP errors about it included; a TCP SYN always begins a new one. */
NOINLINE int admitted(const struct pkt *p, const struct port *port, __u32 ifindex, __u32 direction)
{
	struct scratch *s = scratch();
	struct access *known, new = {};
	struct access_key *key;
	struct judged *j;
	__u32 at = now();
	int syn;

	if (!p || !port || !s || direction > GOES_OUT)
		return 0;
	key = &s->key;
	__builtin_memset(key, 0, sizeof(*key));
	key->vni = port->vni;
	if (direction == GOES_OUT) {
		j = &s->judged[GOES_OUT];
		key->local = p->error ? p->error_saddr : p->saddr;
		key->remote = p->error ? p->error_daddr : p->daddr;
		key->local_port = p->sport;
		key->remote_port = p->dport;
	} else {
		j = &s->judged[GOES_IN];
		key->local = p->error ? p->error_daddr : p->daddr;
		key->remote = p->error ? p->error_saddr : p->saddr;
		key->local_port = p->dport;
		key->remote_port = p->sport;
	}
	key->proto = p->error ? p->error_proto : p->proto;
	if (key->proto == PROTO_TCP)
		name_asked_for(key);
	syn = begins_connection(p);
	count_later(p, ifindex, direction);
	known = bpf_map_lookup_elem(&allowed, key);
	if (known && !syn && (key->proto == PROTO_TCP || at - known->seen < idle_of(key->proto))) {
		__u64 list = port->access[known->direction & 1];
		int unchanged = known->list == list;

		if (unchanged && known->passed != MANY_RULES) {
			count_hits(list, ifindex, known->rule, 1, p->length);
			count_hits(list, ifindex, known->passed, 1, p->length);
		} else if (judge(list, ifindex, p->length, 0)) {
			if (!unchanged) {
				known->list = list;
				known->rule = s->asked.rule;
				known->passed = s->asked.passed;
			}
		} else {
			if (known->direction == direction && !p->error)
				return 0; /* anew it would be the same question */
			goto anew;
		}
		if (known->seen != at && !p->error)
			known->seen = at;
		j->list = list;
		j->rule = known->rule;
		j->passed = known->passed;
		return 1;
	}
anew:
	if (p->error) {
		key->proto = PROTO_ICMP;
		key->local_port = key->remote_port = 0;
		key->local = direction == GOES_OUT ? p->saddr : p->daddr;
		key->remote = direction == GOES_OUT ? p->daddr : p->saddr;
	}
	if (!judge(port->access[direction], ifindex, p->length, 1))
		return 0;
	if (p->error)
		return 1;
	j->list = new.list = port->access[direction];
	new.seen = at;
	new.direction = direction;
	j->rule = new.rule = s->asked.rule;
	j->passed = new.passed = s->asked.passed;
	bpf_map_update_elem(&allowed, key, &new, BPF_ANY);
	return 1;
}

/* Whether the packet may leave the container of `port`. */
INLINE int may_leave(const struct pkt *p, const struct port *port, __u32 ifindex)
{
	return !(port->flags & PORT_FILTERED) || admitted(p, port, ifindex, GOES_OUT);
}

/* Whether it may enter the container of local endpoint `e`, whose interface is `ifindex`. */
INLINE int may_enter(const struct pkt *p, const struct endpoint *e, __u32 ifindex)
{
	struct port *port;

	if (!(e->flags & ENDPOINT_FILTERED))
		return 1;
	port = bpf_map_lookup_elem(&ports, &ifindex);
	return port && (!(port->flags & PORT_FILTERED) || admitted(p, port, ifindex, GOES_IN));
}
