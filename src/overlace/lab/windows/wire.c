/* One connection a call to `overlace hns serve`: what is asked, what comes back (docs/hns.md has the protocol). Must not
 * know what a call means.
 */
#include "stand_in.h"

connection dial(void)
{
	const char *text = getenv("OVERLACE_HNS_PORT");
	struct sockaddr_in where = { .sin_family = AF_INET };
	connection s;

#ifdef _WIN32
	WSADATA started;

	WSAStartup(MAKEWORD(2, 2), &started);
#endif
	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	where.sin_port = htons((uint16_t)(text ? atoi(text) : 0));
	s = socket(AF_INET, SOCK_STREAM, 0);
	if (s == NO_CONNECTION)
		return s;
	if (connect(s, (struct sockaddr *)&where, sizeof where)) {
		hang_up(s);
		return NO_CONNECTION;
	}
	return s;
}

static int send_all(connection s, const char *data, size_t length)
{
	while (length) {
#ifdef _WIN32
		int n = send(s, data, length > 65536 ? 65536 : (int)length, 0);
#else
		ssize_t n = send(s, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
#endif
		if (n <= 0)
			return -1;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

static int receive_all(connection s, char *data, size_t length)
{
	while (length) {
#ifdef _WIN32
		int n = recv(s, data, length > 65536 ? 65536 : (int)length, 0);
#else
		ssize_t n = recv(s, data, length, 0);

		if (n < 0 && errno == EINTR)
			continue;
#endif
		if (n <= 0)
			return -1;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

int receive_line(connection s, char *line, size_t size)
{
	for (size_t at = 0; at + 1 < size; at++) {
		if (receive_all(s, line + at, 1))
			return -1;
		if (line[at] == '\n') {
			line[at] = 0;
			return 0;
		}
	}
	return -1;
}

/* `length` bytes as a string of ours; -1: NULL. 0 when it worked. */
HRESULT receive_text(connection s, long long length, wide **out)
{
	char *data;
	wide *text;

	if (length < 0)
		return 0;
	data = malloc((size_t)length + 1);
	if (!data)
		return FAILED_MEMORY;
	if (receive_all(s, data, (size_t)length)) {
		free(data);
		return CALL_FAILED;
	}
	text = to_utf16((unsigned char *)data, (size_t)length);
	free(data);
	if (!text)
		return FAILED_MEMORY;
	if (out)
		*out = text;
	else
		release(text);
	return 0;
}

HRESULT ask(connection s, const char *operation, uint64_t handle, const void *id, const char *document, size_t length)
{
	char head[192], guid[37];

	guid_text(id, guid);
	snprintf(head, sizeof head, "%s %llu %s %lld\n", operation, (unsigned long long)handle, guid,
		 document ? (long long)length : -1LL);
	if (send_all(s, head, strlen(head)) || (document && send_all(s, document, length)))
		return CALL_FAILED;
	return 0;
}

HRESULT answer(connection s, void **handle, wide **result, wide **record)
{
	char line[128];
	unsigned int hr;
	unsigned long long made;
	long long sizes[2];
	HRESULT failed;

	if (receive_line(s, line, sizeof line) ||
	    sscanf(line, "%x %llu %lld %lld", &hr, &made, &sizes[0], &sizes[1]) != 4)
		return CALL_FAILED;
	failed = receive_text(s, sizes[0], result);
	if (!failed)
		failed = receive_text(s, sizes[1], record);
	if (failed) {
		if (result && *result)
			release(*result);
		if (result)
			*result = NULL;
		return failed;
	}
	if (handle)
		*handle = (void *)(uintptr_t)made;
	return (HRESULT)hr;
}

HRESULT forward_bytes(const char *operation, void *handle, const void *id, const char *document, size_t length,
		      void **made, wide **result, wide **record)
{
	connection s = dial();
	HRESULT hr;

	if (s == NO_CONNECTION)
		return SERVER_UNAVAILABLE;
	/* a refusal may come before all of the document is sent: read it all the same */
	hr = ask(s, operation, (uint64_t)(uintptr_t)handle, id, document, length);
	if (!hr || document)
		hr = answer(s, made, result, record);
	hang_up(s);
	return hr;
}

HRESULT forward(const char *operation, void *handle, const void *id, const wide *document, void **made, wide **result,
		wide **record)
{
	size_t length = 0;
	char *text = NULL;
	HRESULT hr;

	if (made)
		*made = NULL;
	if (result)
		*result = NULL;
	if (record)
		*record = NULL;
	if (document && !(text = to_utf8(document, &length)))
		return FAILED_MEMORY;
	hr = forward_bytes(operation, handle, id, text, length, made, result, record);
	free(text);
	return hr;
}
