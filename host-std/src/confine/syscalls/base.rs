//! System calls of all roles, with limits on their arguments.

use libc::c_long;
use seccompiler::{BackendError, SeccompRule};

use super::roles::Role;
use super::rules::{Rules, has_bits, is, is_null};

/// Linux, include/uapi/linux/fs.h: `_IO(0x12, 119)`.
const BLKDISCARD: u32 = 0x1277;
/// Linux, include/uapi/linux/fs.h: `_IO(0x12, 127)`.
const BLKZEROOUT: u32 = 0x127f;
/// Linux, include/uapi/linux/fs.h: `_IO(0x12, 104)`.
const BLKSSZGET: u32 = 0x1268;
/// Linux, include/uapi/linux/fs.h: `_IO(0x12, 123)`.
const BLKPBSZGET: u32 = 0x127b;
/// Linux, include/uapi/linux/fs.h: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: u32 = 0x8008_1272;
/// Linux, include/uapi/asm-generic/ioctls.h.
const FIONBIO: u32 = 0x5421;
/// Linux, include/uapi/asm-generic/ioctls.h.
const FIONREAD: u32 = 0x541b;
/// Linux, include/uapi/linux/seccomp.h.
const SECCOMP_SET_MODE_FILTER: u32 = 1;

/// Of a ring: what is done from its set-up to its end. Linux, include/uapi/linux/io_uring.h:
/// REGISTER_FILES, UNREGISTER_FILES, REGISTER_EVENTFD, REGISTER_RESTRICTIONS,
/// REGISTER_ENABLE_RINGS.
const RING_REGISTER: [u32; 5] = [2, 3, 4, 11, 12];

/// Of a descriptor: its flags, a copy, the image lock, the seals of memory. Not who gets a signal
/// from it (F_SETOWN).
const FCNTL: [i32; 9] = [
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_DUPFD_CLOEXEC,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_GET_SEALS,
    libc::F_ADD_SEALS,
];

/// All that tells a thread from a process, or gives it a namespace of its own.
const CLONE: i32 = libc::CLONE_THREAD
    | libc::CLONE_VM
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE;

/// To be made on the main thread, before the process has others: it knows its own number.
pub(super) fn rules(new_rings: bool) -> Result<Rules, BackendError> {
    let calls = Role::ALL.into_iter().flat_map(Role::calls);
    let calls = calls.filter(|&call| new_rings || call != libc::SYS_io_uring_setup);
    calls.map(|call| Ok((call, arguments(call)?))).collect()
}

/// One of these must hold; empty if nothing need.
fn arguments(call: c_long) -> Result<Vec<SeccompRule>, BackendError> {
    let one_of = |argument, values: &[u32]| values.iter().map(|&value| is(argument, value)).collect();
    let unsigned = |value: i32| value.cast_unsigned();
    match call {
        // Nothing that is written becomes code.
        libc::SYS_mmap | libc::SYS_mprotect => Ok(vec![has_bits(2, unsigned(libc::PROT_EXEC), 0)?]),
        libc::SYS_clone => {
            Ok(vec![has_bits(0, unsigned(CLONE), unsigned(libc::CLONE_THREAD | libc::CLONE_VM))?])
        }
        // A thread's name, and what precedes the filter of a role.
        libc::SYS_prctl => one_of(0, &[libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS].map(unsigned)),
        libc::SYS_seccomp => one_of(0, &[SECCOMP_SET_MODE_FILTER]),
        // An abort. No other process is signalled.
        libc::SYS_tgkill => one_of(0, &[std::process::id()]),
        libc::SYS_fcntl => one_of(1, &FCNTL.map(unsigned)),
        libc::SYS_ioctl => {
            one_of(1, &[BLKDISCARD, BLKZEROOUT, BLKSSZGET, BLKPBSZGET, BLKGETSIZE64, FIONBIO, FIONREAD])
        }
        // To whom the socket is connected.
        libc::SYS_sendto => Ok(vec![is_null(4)?]),
        libc::SYS_setsockopt => one_of(1, &[unsigned(libc::SOL_SOCKET)]),
        libc::SYS_io_uring_register => one_of(1, &RING_REGISTER),
        _ => Ok(Vec::new()),
    }
}
