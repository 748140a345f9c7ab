//! The one place where an ioctl is issued.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use rustix::io;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

/// Issues ioctl `OPCODE` with a pointer to `argument`, and returns what the kernel returned.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// On `fd`, `OPCODE` must read and write nothing but `T` and memory that pointers within `T` name as
/// being for that use, and leave in `T` a valid `T`.
pub(crate) unsafe fn call<const OPCODE: Opcode, T>(fd: impl AsFd, argument: &mut T) -> io::Result<i32> {
    let call = Call::<OPCODE, T> { argument, lifetime: PhantomData };
    // SAFETY: `Call` passes a pointer to a live, exclusively borrowed `T`; the caller answers for what the kernel does
    // with it.
    unsafe { rustix::ioctl::ioctl(fd, call) }
}

struct Call<'a, const OPCODE: Opcode, T> {
    argument: *mut T,
    lifetime: PhantomData<&'a mut T>,
}

// SAFETY: `opcode` and `as_ptr` return the same pair at each call, the pointer is valid for reads and writes of a `T` as
// long as `self` lives, and `IS_MUTATING` is the conservative choice. `output_from_ptr` does not touch the pointer.
unsafe impl<const OPCODE: Opcode, T> Ioctl for Call<'_, OPCODE, T> {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument.cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> io::Result<i32> {
        Ok(out)
    }
}
