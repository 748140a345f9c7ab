//! What an embedder brings: an entry point, four memory functions, an exit, a panic handler. All of the `unsafe` is here.

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "and $-16, %rsp",
    "call freestanding_main",
    "ud2",
    options(att_syntax)
);

/// Makes a function that returns an exit status the program.
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn freestanding_main() -> ! {
            $crate::glue::exit($run())
        }
    };
}

/// Ends the process with `status`, by the kernel's `exit_group`: there is no library to do it.
pub fn exit(status: u8) -> ! {
    // SAFETY: system call 231 takes one argument, touches no memory of ours and does not return.
    unsafe { asm!("syscall", in("rax") 231, in("rdi") u64::from(status), options(noreturn, nostack)) }
}

/// Writes to standard output.
pub fn print(bytes: &[u8]) {
    let (from, len) = (bytes.as_ptr(), bytes.len());
    // SAFETY: system call 1 reads `bytes` and touches no other memory; it clobbers rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") 1_u64 => _, in("rdi") 1_u64, in("rsi") from, in("rdx") len, out("rcx") _, out("r11") _, options(nostack, readonly));
    }
}

#[panic_handler]
#[cfg(not(feature = "panic-free"))]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(101)
}

#[panic_handler]
#[cfg(feature = "panic-free")]
fn panic(_: &PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        fn a_panic_is_linked() -> !;
    }
    // SAFETY: there is no such function, and so no program that calls it.
    unsafe { a_panic_is_linked() }
}

/// The precompiled `core` names it in its unwind tables; with `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

// The compiler calls these; string instructions, so that it cannot turn a loop in them into a call to themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `bytes` bytes at both pointers; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: `to` is not inside the source, so copying upwards reads each byte before it is overwritten.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: as for `memcpy`, downwards from the last byte (`bytes` is not 0 here), and the direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _, inout("rdi") to.add(bytes - 1) => _,
             inout("rsi") from.add(bytes - 1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller vouches for `bytes` writable bytes; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    for at in 0..bytes {
        // SAFETY: the caller vouches for `bytes` readable bytes at both pointers.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, bytes: usize) -> i32 {
    // SAFETY: as the caller vouches.
    unsafe { memcmp(a, b, bytes) }
}
