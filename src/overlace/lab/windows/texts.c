/* UTF-16 of the callers, UTF-8 of the wire, GUIDs as text. Must not talk to anybody. */
#include "stand_in.h"

char *to_utf8(const wide *text, size_t *length)
{
	size_t n = 0, at = 0;
	char *out;

	while (text[n])
		n++;
	out = malloc(3 * n + 1); /* a pair of surrogates is two units and four bytes */
	if (!out)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		uint32_t c = text[i];

		if (c >= 0xd800 && c < 0xdc00 && text[i + 1] >= 0xdc00 && text[i + 1] < 0xe000)
			c = 0x10000 + ((c - 0xd800) << 10) + (text[++i] - 0xdc00);
		else if (c >= 0xd800 && c < 0xe000)
			c = 0xfffd;
		if (c < 0x80) {
			out[at++] = (char)c;
		} else if (c < 0x800) {
			out[at++] = (char)(0xc0 | c >> 6);
			out[at++] = (char)(0x80 | (c & 0x3f));
		} else if (c < 0x10000) {
			out[at++] = (char)(0xe0 | c >> 12);
			out[at++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[at++] = (char)(0x80 | (c & 0x3f));
		} else {
			out[at++] = (char)(0xf0 | c >> 18);
			out[at++] = (char)(0x80 | (c >> 12 & 0x3f));
			out[at++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[at++] = (char)(0x80 | (c & 0x3f));
		}
	}
	out[at] = 0;
	*length = at;
	return out;
}

/* The service writes valid UTF-8. */
wide *to_utf16(const unsigned char *text, size_t length)
{
	wide *out = allocate(2 * (length + 1));
	size_t at = 0;

	if (!out)
		return NULL;
	for (size_t i = 0; i < length;) {
		uint32_t c = text[i++];
		int more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;

		if (more)
			c &= 0x3f >> more;
		while (more-- && i < length)
			c = c << 6 | (text[i++] & 0x3f);
		if (c >= 0x10000) {
			out[at++] = (wide)(0xd800 + ((c - 0x10000) >> 10));
			c = 0xdc00 + ((c - 0x10000) & 0x3ff);
		}
		out[at++] = (wide)c;
	}
	out[at] = 0;
	return out;
}

void guid_text(const unsigned char *g, char out[37])
{
	if (!g) {
		strcpy(out, "-");
		return;
	}
	snprintf(out, 37, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", g[3], g[2], g[1], g[0],
		 g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}
