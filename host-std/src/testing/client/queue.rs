//! The driver's side of a split ring (VIRTIO 1.3, 2.7), and the two eventfds beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use rustix::event::Timespec;
use rustix::event::epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::options;
use super::{ClientError, Options};
use crate::memory::MappedMemory;

const DESCRIPTOR_BYTES: u64 = 16;
const USED_BYTES: u64 = 8;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
/// In the available ring's flags: the driver wants no notification.
const NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: the device wants none.
const NO_NOTIFY: u16 = 1;

/// Guest memory that a descriptor names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub addr: GuestAddr,
    pub len: u32,
}

/// A chain that the device has returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub head: u16,
    pub len: u32,
}

/// Counts of a queue so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Chains made available.
    pub submitted: u64,
    /// Chains that came back.
    pub completed: u64,
    /// Times the device was told.
    pub kicks: u64,
    /// Sleeps that ended with a notification from the device.
    pub wakes: u64,
}

/// Where a ring's three parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub descriptors: GuestAddr,
    pub available: GuestAddr,
    pub used: GuestAddr,
}

impl Parts {
    /// Bytes that a ring of `size` takes, with each part on a page of its own.
    pub(super) fn bytes(size: u16) -> u64 {
        let parts = Self::at(GuestAddr(0), size);
        page_up(parts.used.0 + 6 + USED_BYTES * u64::from(size))
    }

    pub(super) fn at(start: GuestAddr, size: u16) -> Self {
        let available = page_up(start.0 + DESCRIPTOR_BYTES * u64::from(size));
        let used = page_up(available + 6 + 2 * u64::from(size));
        Self { descriptors: start, available: GuestAddr(available), used: GuestAddr(used) }
    }
}

pub(super) fn page_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}

/// What is known of a chain in flight, by its head.
#[derive(Clone, Copy, Debug)]
struct Chain {
    /// Bytes that the device may write.
    writable: u32,
}

/// One ring. It outlives connections: the memory and what is in flight stay, the eventfds are made anew.
#[derive(Debug)]
pub(super) struct Queue {
    memory: MappedMemory,
    parts: Parts,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// Free descriptors.
    free: Vec<u16>,
    /// The descriptor that follows in a direct chain: the driver's own copy, which no device can change.
    next: Vec<Option<u16>>,
    in_flight: Vec<Option<Chain>>,
    /// The next available index, and the one up to which the device was told.
    available: u16,
    told: u16,
    /// The next used index to take, and the last one loaded.
    used: u16,
    loaded: u16,
    counts: QueueCounts,
    wires: Wires,
    /// [`Options::interrupts_only`].
    interrupts_only: bool,
    /// With `interrupts_only`: a notification came, and the ring has not been found empty since.
    interrupted: bool,
}

/// The eventfds of one connection, and what a wait sleeps on.
#[derive(Debug)]
struct Wires {
    kick: EventFd,
    call: EventFd,
    epoll: OwnedFd,
}

const WOKEN: epoll::EventData = epoll::EventData::new_u64(0);
const HUNG_UP: epoll::EventData = epoll::EventData::new_u64(1);

impl Wires {
    /// The call's eventfd is watched edge-triggered, so that it need not be read; so is the socket, for its end.
    fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, eventfd(&call), WOKEN, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        epoll::add(&epoll, socket, HUNG_UP, epoll::EventFlags::RDHUP)?;
        Ok(Self { kick, call, epoll })
    }
}

fn eventfd(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open as long as `event`, from which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

impl Queue {
    /// A ring in zeroed memory.
    pub(super) fn new(
        memory: MappedMemory,
        parts: Parts,
        options: &Options,
        features: u64,
        socket: BorrowedFd<'_>,
    ) -> Result<Self, ClientError> {
        let size = options.size;
        let wires = Wires::new(socket).map_err(ClientError::system("eventfd"))?;
        Ok(Self {
            memory,
            parts,
            size,
            event_idx: features & options::EVENT_IDX != 0,
            indirect: features & options::INDIRECT_DESC != 0,
            free: (0..size).rev().collect(),
            next: vec![None; usize::from(size)],
            in_flight: vec![None; usize::from(size)],
            available: 0,
            told: 0,
            used: 0,
            loaded: 0,
            counts: QueueCounts::default(),
            wires,
            interrupts_only: options.interrupts_only,
            interrupted: false,
        })
    }

    /// New eventfds, for a new connection: what was signalled on the old ones has reached the guest, or is lost.
    pub(super) fn rewire(&mut self, socket: BorrowedFd<'_>) -> Result<(), ClientError> {
        if self.interrupts_only {
            self.look_for_interrupt()?;
        }
        self.wires = Wires::new(socket).map_err(ClientError::system("eventfd"))?;
        Ok(())
    }

    /// The ring as a driver leaves it that resets the device: empty, from index 0.
    pub(super) fn reset(&mut self) {
        let blank = vec![0; Parts::bytes(self.size) as usize];
        self.memory.write(self.parts.descriptors, &blank).expect("the ring is memory");
        self.free = (0..self.size).rev().collect();
        self.next.fill(None);
        self.in_flight.fill(None);
        (self.available, self.told, self.used, self.loaded) = (0, 0, 0, 0);
    }

    pub(super) fn memory(&self) -> &MappedMemory {
        &self.memory
    }

    pub(super) fn parts(&self) -> Parts {
        self.parts
    }

    pub(super) fn kick_fd(&self) -> &EventFd {
        &self.wires.kick
    }

    pub(super) fn call_fd(&self) -> &EventFd {
        &self.wires.call
    }

    pub(super) fn counts(&self) -> QueueCounts {
        self.counts
    }

    pub(super) fn in_flight(&self) -> usize {
        (self.counts.submitted - self.counts.completed) as usize
    }

    /// The used index in the ring: where QEMU has a ring resume whose server died (`virtio_queue_restore_last_avail_idx`).
    pub(super) fn used_index(&self) -> u16 {
        self.memory.load_u16_acquire(after(self.parts.used, 2)).expect("the ring is memory")
    }

    /// The next available index.
    pub(super) fn available_index(&self) -> u16 {
        self.available
    }

    /// Makes a chain available: the readable spans, then the writable ones. `table` has room for them, if they go indirect.
    /// The device is not told before [`Self::kick`]. Returns the head.
    pub(super) fn submit(
        &mut self,
        table: GuestAddr,
        readable: &[Span],
        writable: &[Span],
    ) -> Result<u16, ClientError> {
        let count = readable.len() + writable.len();
        let needed = if self.indirect { 1 } else { count };
        if needed > self.free.len() {
            return Err(ClientError::Full);
        }
        let flagged =
            readable.iter().map(|span| (span, 0)).chain(writable.iter().map(|span| (span, DESC_WRITE)));
        let head = if self.indirect {
            for (at, (span, flags)) in flagged.enumerate() {
                let last = at + 1 == count;
                let flags = if last { flags } else { flags | DESC_NEXT };
                self.describe(table, at as u16, *span, flags, at as u16 + 1);
            }
            let head = self.free.pop().ok_or(ClientError::Full)?;
            let whole = Span { addr: table, len: (DESCRIPTOR_BYTES * count as u64) as u32 };
            self.describe(self.parts.descriptors, head, whole, DESC_INDIRECT, 0);
            head
        } else {
            let from = self.free.len() - count;
            let taken: Vec<u16> = self.free.drain(from..).rev().collect();
            for (at, (span, flags)) in flagged.enumerate() {
                let next = taken.get(at + 1).copied();
                let flags = if next.is_some() { flags | DESC_NEXT } else { flags };
                self.describe(self.parts.descriptors, taken[at], *span, flags, next.unwrap_or(0));
                self.next[usize::from(taken[at])] = next;
            }
            taken[0]
        };
        let bytes = writable.iter().map(|span| span.len).sum();
        self.in_flight[usize::from(head)] = Some(Chain { writable: bytes });
        self.offer(head);
        Ok(head)
    }

    /// Writes a descriptor as it is, whatever it says.
    fn describe(&self, table: GuestAddr, at: u16, span: Span, flags: u16, next: u16) {
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        bytes[..8].copy_from_slice(&span.addr.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&span.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = after(table, DESCRIPTOR_BYTES * u64::from(at));
        self.memory.write(at, &bytes).expect("the ring is memory");
    }

    fn offer(&mut self, head: u16) {
        let slot = after(self.parts.available, 4 + 2 * u64::from(self.available % self.size));
        self.memory.write(slot, &head.to_le_bytes()).expect("the ring is memory");
        self.available = self.available.wrapping_add(1);
        let index = after(self.parts.available, 2);
        self.memory.store_u16_release(index, self.available).expect("the ring is memory");
        self.counts.submitted += 1;
    }

    /// Tells the device of what was made available since the last time, if it wants to be told. Returns whether it was.
    pub(super) fn kick(&mut self) -> Result<bool, ClientError> {
        if self.told == self.available {
            return Ok(false);
        }
        // Between the store of the available index and the load of what the device wants to be told (2.7.13.4.1).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let at = after(self.parts.used, 4 + USED_BYTES * u64::from(self.size));
            let event = self.memory.load_u16_acquire(at).expect("the ring is memory");
            passed(event, self.told, self.available)
        } else {
            let flags = self.memory.load_u16_acquire(self.parts.used).expect("the ring is memory");
            flags & NO_NOTIFY == 0
        };
        self.told = self.available;
        if wanted {
            self.kick_always()?;
        }
        Ok(wanted)
    }

    pub(super) fn kick_always(&mut self) -> Result<(), ClientError> {
        self.counts.kicks += 1;
        self.wires.kick.write(1).map_err(ClientError::system("cannot kick"))
    }

    /// Takes the next chain that came back; with [`Options::interrupts_only`], only after a notification.
    pub(super) fn poll(&mut self) -> Result<Option<Used>, ClientError> {
        if !self.interrupts_only {
            return self.take_next();
        }
        if !self.interrupted {
            self.look_for_interrupt()?;
        }
        if !self.interrupted {
            return Ok(None);
        }
        if let Some(used) = self.take_next()? {
            return Ok(Some(used));
        }
        // What came between the last look and the request for another notification brings none (VIRTIO 1.3, 2.7.14).
        self.arm();
        let used = self.take_next()?;
        self.interrupted = used.is_some();
        Ok(used)
    }

    fn look_for_interrupt(&mut self) -> Result<(), ClientError> {
        self.interrupted |= matches!(self.sleep(Duration::ZERO)?, Sleep::Woken);
        Ok(())
    }

    fn take_next(&mut self) -> Result<Option<Used>, ClientError> {
        if self.loaded == self.used {
            self.loaded = self.used_index();
            if self.loaded == self.used {
                return Ok(None);
            }
            let new = self.loaded.wrapping_sub(self.used);
            if usize::from(new) > self.in_flight() {
                return Err(misbehaves(format!(
                    "the used index went from {} to {} with {} chains in flight",
                    self.used,
                    self.loaded,
                    self.in_flight()
                )));
            }
        }
        let mut bytes = [0; USED_BYTES as usize];
        let at = after(self.parts.used, 4 + USED_BYTES * u64::from(self.used % self.size));
        self.memory.read(at, &mut bytes).expect("the ring is memory");
        let (id, len) = (u64::from_le_bytes(bytes) as u32, (u64::from_le_bytes(bytes) >> 32) as u32);
        self.used = self.used.wrapping_add(1);
        self.take_back(id, len).map(Some)
    }

    fn take_back(&mut self, id: u32, len: u32) -> Result<Used, ClientError> {
        let slot = self.in_flight.get_mut(id as usize);
        let Some(chain) = slot.and_then(Option::take) else {
            return Err(misbehaves(format!("chain {id} came back and was not in flight")));
        };
        if len > chain.writable {
            return Err(misbehaves(format!(
                "{len} bytes written to a chain with room for {}",
                chain.writable
            )));
        }
        let head = id as u16;
        let mut at = Some(head);
        while let Some(descriptor) = at {
            self.free.push(descriptor);
            at = self.next[usize::from(descriptor)].take();
        }
        self.counts.completed += 1;
        Ok(Used { head, len })
    }

    /// Asks for a notification of the next completion.
    fn arm(&mut self) {
        if self.event_idx {
            let at = after(self.parts.available, 4 + 2 * u64::from(self.size));
            self.memory.store_u16_release(at, self.used).expect("the ring is memory");
        } else {
            self.memory.store_u16_release(self.parts.available, 0).expect("the ring is memory");
        }
        fence(Ordering::SeqCst);
    }

    fn disarm(&mut self) {
        if !self.event_idx {
            self.memory.store_u16_release(self.parts.available, NO_INTERRUPT).expect("the ring is memory");
        }
    }

    /// Tells the device of what it has not been told of, and takes the next chain that comes back, asleep until then.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<Used, ClientError> {
        self.kick()?;
        if let Some(used) = self.poll()? {
            return Ok(used);
        }
        let deadline = Instant::now() + timeout;
        self.arm();
        loop {
            if let Some(used) = self.poll()? {
                self.disarm();
                return Ok(used);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.sleep(left)? {
                Sleep::Woken => {
                    self.counts.wakes += 1;
                    self.interrupted = true;
                }
                // What was completed before the end counts.
                Sleep::HungUp => return self.poll()?.ok_or(ClientError::Gone),
                Sleep::TimedOut if self.used_index() != self.used => {
                    return Err(ClientError::LostNotification);
                }
                Sleep::TimedOut => {
                    return Err(ClientError::Timeout { waited: timeout, in_flight: self.in_flight() });
                }
            }
        }
    }

    fn sleep(&self, time: Duration) -> Result<Sleep, ClientError> {
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: WOKEN }; 2];
        let time = Timespec::try_from(time).expect("a timeout is a short time");
        let count = loop {
            match epoll::wait(self.wires.epoll.as_fd(), &mut events[..], Some(&time)) {
                Err(rustix::io::Errno::INTR) => {}
                result => {
                    break result.map_err(io::Error::from).map_err(ClientError::system("epoll_wait"))?;
                }
            }
        };
        let woken = events[..count].iter().any(|event| event.data.u64() == WOKEN.u64());
        Ok(match count {
            0 => Sleep::TimedOut,
            _ if woken => Sleep::Woken,
            _ => Sleep::HungUp,
        })
    }
}

enum Sleep {
    Woken,
    HungUp,
    TimedOut,
}

/// Whether an index that was asked to be told of lies in what was added since `old` (VIRTIO 1.3, 2.7.7.2).
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

pub(super) fn misbehaves(what: impl Into<String>) -> ClientError {
    ClientError::Misbehaves(what.into())
}

/// The address `bytes` further on, within memory that was laid out here.
pub(super) fn after(addr: GuestAddr, bytes: u64) -> GuestAddr {
    GuestAddr(addr.0 + bytes)
}
