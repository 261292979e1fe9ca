/* Some exports of computenetwork.dll. What it is asked decides what it does; strings given are counted until freed. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t wide;

int out_there = 0;

static wide *give(const char *s)
{
	size_t n = strlen(s) + 1;
	wide *p = malloc(2 * n);

	for (size_t i = 0; i < n; i++)
		p[i] = (unsigned char)s[i];
	out_there++;
	return p;
}

void CoTaskMemFree(void *p)
{
	if (p)
		out_there--;
	free(p);
}

int32_t HcnQueryNetworkProperties(void *handle, const wide *query, wide **properties, wide **record)
{
	(void)query;
	*properties = give("{}");
	if (handle == (void *)1) {
		*record = give("{\"Success\":false,\"Error\":\"An expected policy was not found. \","
			       "\"ErrorCode\":2151350280}");
		return (int32_t)0x803b0008;
	}
	if (handle == (void *)2) {
		*record = give("{\"Success\":false,\"Error\":\"a warning \",\"ErrorCode\":5}");
		return 0;
	}
	if (handle == (void *)3) {
		*record = give("not json");
		return (int32_t)0x80070057;
	}
	return handle == (void *)0x123456789abcdef0 ? 0 : (int32_t)0x80070006;
}

int32_t HcnEnumerateNetworks(const wide *query, wide **ids, wide **record)
{
	(void)record;
	*ids = give(query[0] == 'x' ? "[1]" : query[0] == 'n' ? "" : "[]");
	return 0;
}

int32_t HcnOpenNetwork(const uint8_t *id, void **handle, wide **record)
{
	(void)record;
	*handle = (void *)(uintptr_t)(id[0] | id[3] << 8 | id[15] << 16);
	return 0;
}
