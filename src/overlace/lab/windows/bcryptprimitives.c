/* bcryptprimitives.dll for a Wine that has none (before 9.0): programs written in Rust or Go, cryptography's Windows
 * wheel among them, take their random numbers from its ProcessPrng. Ours passes on to SystemFunction036 (RtlGenRandom)
 * of advapi32, which Wine fills from the host's own generator.
 *
 * ProcessPrng: learn.microsoft.com, "ProcessPrng function"; it always returns TRUE.
 */
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length)
{
    while (length > 0) {
        ULONG part = length > 0x40000000 ? 0x40000000 : (ULONG)length;
        if (!SystemFunction036(data, part))
            TerminateProcess(GetCurrentProcess(), 1); /* callers do not look: no numbers is the end, as on Windows */
        data += part;
        length -= part;
    }
    return TRUE;
}
