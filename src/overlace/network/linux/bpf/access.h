/* SPDX-License-Identifier: Apache-2.0 */
/* Who may open connections to and from an endpoint. vfp/access.py is the same in Python, and the definition. */
#pragma once
#include "packet.h"

INLINE int in_set(__u32 low, __u32 high, __be32 addr)
{
	struct set_key key = { .prefix = 96, .set = { low, high }, .addr = addr };

	return bpf_map_lookup_elem(&address_sets, &key) != 0;
}

struct asked { /* about a connection; ports in host order */
	__u64 list;
	__u32 local, remote;
	__u16 local_port, remote_port;
	__u16 skipped; /* tier whose rest is left out */
	__u16 rule, passed; /* as in struct judged */
	__u8 proto, answer;
	__u32 ifindex, bytes, begins; /* what is counted for rules that pass */
};

/* What one processor works with while it has a packet, and what would not fit on the stack. */
struct scratch {
	struct judged judged[2]; /* by enum direction: the rules this packet counted for, if any */
	struct access_key key;
	struct asked asked;
	struct way way;
};

MAP(BPF_MAP_TYPE_PERCPU_ARRAY, scratches, __u32, struct scratch, 1, 0);

INLINE struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* A packet counts for a rule of the filtered endpoint at `ifindex`; `rule` as in struct judged. */
NOINLINE int count_hit(__u64 list, __u32 ifindex, __u32 rule, __u32 bytes, __u32 begins)
{
	struct hit_key key = { .list = list, .ifindex = ifindex, .rule = rule - 1 };
	struct hit *h, new = { .connections = begins, .packets = 1, .bytes = bytes };

	if (!rule)
		return 0;
	h = bpf_map_lookup_elem(&hits, &key);
	if (!h)
		return bpf_map_update_elem(&hits, &key, &new, BPF_NOEXIST);
	h->connections += begins;
	h->packets += 1;
	h->bytes += bytes;
	return 0;
}

INLINE void count_judged(const struct judged *j, __u32 ifindex, __u32 bytes)
{
	count_hit(j->list, ifindex, j->rule, bytes, 0);
	if (j->passed)
		count_hit(j->list, ifindex, j->passed, bytes, 0);
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
	if (r->sets & SET_LOCAL ? !in_set(r->local, r->local_mask, a->local) : (a->local ^ r->local) & r->local_mask)
		return 0;
	if (r->sets & SET_REMOTE ? !in_set(r->remote, r->remote_mask, a->remote) :
				   (a->remote ^ r->remote) & r->remote_mask)
		return 0;
	if (r->action == RULE_PASS) {
		a->skipped = r->tier;
		a->passed = a->passed ? MANY_RULES : i + 1;
		count_hit(a->list, a->ifindex, i + 1, a->bytes, a->begins);
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
	count_hit(list, ifindex, a->rule, bytes, begins);
	return a->answer;
}

/* Whether the packet may pass the filtered endpoint at `port`, the interface `ifindex`. What an allowed connection carries
 * passes both ways, ICMP errors about it included; a TCP SYN always begins a new one. */
NOINLINE int admitted(struct pkt *p, const struct port *port, __u32 ifindex, __u32 direction)
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
	syn = p->proto == PROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	known = bpf_map_lookup_elem(&allowed, key);
	if (known && !syn && (key->proto == PROTO_TCP || at - known->seen < UDP_IDLE)) {
		__u64 list = port->access[known->direction & 1];
		int same = known->list == list;

		if (same && known->passed != MANY_RULES) {
			count_hit(list, ifindex, known->rule, p->length, 0);
			count_hit(list, ifindex, known->passed, p->length, 0);
		} else if (judge(list, ifindex, p->length, 0)) {
			if (!same) {
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
		goto yes;
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
yes:
	if (j->passed == MANY_RULES)
		p->generation = 0; /* each of its packets is counted for each of them: by the layers */
	return 1;
}
