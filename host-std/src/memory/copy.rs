//! Copies of memory that others change meanwhile: volatile, in words where that is possible.

use std::ptr::NonNull;

/// Copies memory that others may change meanwhile, each byte read once: in words where `from` is aligned for it.
///
/// # Safety
/// `into.len()` bytes from `from` on are mapped and readable during the call.
#[inline]
pub(crate) unsafe fn copy_out(from: NonNull<u8>, into: &mut [u8]) {
    let mut from = from.as_ptr().cast_const();
    let mut into = into;
    if from.cast::<u64>().is_aligned() {
        let (words, tail) = into.as_chunks_mut::<8>();
        for word in words {
            // SAFETY: eight bytes of the range remain, and `from` is aligned for a word, as it is moved on by words only.
            unsafe {
                *word = from.cast::<u64>().read_volatile().to_ne_bytes();
                from = from.add(8);
            }
        }
        into = tail;
    }
    for byte in into {
        // SAFETY: a byte of the range remains for each one left in `into`.
        unsafe {
            *byte = from.read_volatile();
            from = from.add(1);
        }
    }
}

/// Copies into memory that others may access meanwhile, each byte written once: in words where `into` is aligned for it.
///
/// # Safety
/// `from.len()` bytes from `into` on are mapped and writable during the call.
#[inline]
pub(crate) unsafe fn copy_in(from: &[u8], into: NonNull<u8>) {
    let mut from = from;
    let mut into = into.as_ptr();
    if into.cast::<u64>().is_aligned() {
        let (words, tail) = from.as_chunks::<8>();
        for word in words {
            // SAFETY: eight bytes of the range remain, and `into` is aligned for a word, as it is moved on by words only.
            unsafe {
                into.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
                into = into.add(8);
            }
        }
        from = tail;
    }
    for byte in from {
        // SAFETY: a byte of the range remains for each one left in `from`.
        unsafe {
            into.write_volatile(*byte);
            into = into.add(1);
        }
    }
}
