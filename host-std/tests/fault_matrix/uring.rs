//! What a traced process gives an io_uring to write: its submission queue, read while the process stands still.

use std::collections::HashMap;
use std::ops::Range;

use nix::sys::ptrace;
use nix::unistd::Pid;

// Linux, include/uapi/linux/io_uring.h.
const OFFSET_OF_ENTRIES: u64 = 0x1000_0000;
const ENTRY_BYTES: u64 = 64;
const WRITEV: u8 = 2;
const WRITE: u8 = 23;

/// The submission queues of a process, by the ring's descriptor.
#[derive(Default)]
pub(crate) struct Rings(HashMap<u64, Ring>);

struct Ring {
    entries: u64,
    count: u64,
    /// Entries that the kernel has taken.
    taken: u64,
}

/// A write that was given to a ring.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) range: Range<u64>,
    /// With RWF_DSYNC.
    pub(crate) stable: bool,
}

impl Rings {
    /// The process has mapped something.
    pub(crate) fn mapped(&mut self, arguments: [u64; 6], address: i64) {
        if arguments[5] == OFFSET_OF_ENTRIES && address > 0 {
            let ring = Ring { entries: address.cast_unsigned(), count: arguments[1] / ENTRY_BYTES, taken: 0 };
            self.0.insert(arguments[4], ring);
        }
    }

    /// The kernel has taken `count` entries (io_uring_enter): those among them that write. The ring's order is that of its entries, as the
    /// crate io-uring has it.
    pub(crate) fn entered(&mut self, pid: Pid, fd: u64, count: i64) -> Vec<Write> {
        let Some(ring) = self.0.get_mut(&fd) else { return Vec::new() };
        let from = ring.taken;
        ring.taken += u64::try_from(count).unwrap_or(0);
        let places = (from..ring.taken).map(|index| ring.entries + index % ring.count.max(1) * ENTRY_BYTES);
        places.filter_map(|place| write(pid, place)).collect()
    }
}

fn write(pid: Pid, place: u64) -> Option<Write> {
    let word = |address: u64| Some(ptrace::read(pid, address as ptrace::AddressType).ok()?.cast_unsigned());
    let opcode = word(place)? as u8;
    let (offset, address, last) = (word(place + 8)?, word(place + 16)?, word(place + 24)?);
    // The length, and the flags of the call that it stands for.
    let (length, flags) = (last & 0xffff_ffff, (last >> 32) as libc::c_int);
    let bytes = match opcode {
        WRITE => length,
        // An iovec's second word is its length.
        WRITEV => (0..length).map(|index| word(address + index * 16 + 8)).sum::<Option<u64>>()?,
        _ => return None,
    };
    Some(Write { range: offset..offset + bytes, stable: flags & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0 })
}
