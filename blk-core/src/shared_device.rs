//! A device that several processors and an interrupt handler share, behind a spinlock.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use spin::mutex::SpinMutex;
pub use spin::{RelaxStrategy, Spin};

use crate::bus::{Device, IrqChange, Progress, Region, Width, WriteStatus};
use crate::units::GuestAddr;

/// A device at a range of guest physical addresses, as hypervisors dispatch accesses to it: object-safe, shared, and with nothing
/// to be returned but the value read.
pub trait MmioDevice: Sync {
    /// The addresses that it decodes.
    fn address_range(&self) -> Range<GuestAddr>;

    /// A vCPU reads `width` bytes at `addr`.
    fn read(&self, addr: GuestAddr, width: Width) -> u64;

    /// A vCPU writes. Once this returns, the write has taken effect: it may wait for the storage, see
    /// [`SharedDevice::write`]. Work may be left: call [`Self::poll`].
    fn write(&self, addr: GuestAddr, width: Width, value: u64);

    /// Makes bounded progress. Returns whether work is left, for which to call again.
    fn poll(&self) -> bool;

    /// The interrupt handler of what is below the device. It never waits. Work may be left: have [`Self::poll`] called.
    fn handle_interrupt(&self);
}

/// A [`Device`] with its memory and its storage, `Q` handles, behind a spinlock: for vCPUs on any processor, and for the interrupt
/// handler of the storage on any of them, also on one that holds the lock.
///
/// An interrupt handler must not wait for a lock, or it waits for ever if the processor that it interrupted holds it. So
/// [`Self::handle_interrupt`] sets a flag and *tries* the lock. Whoever holds it looks at the flag after letting go, and then polls
/// in the handler's place. No interrupt is lost, nobody has to mask any, and no one waits longer than a register access or a poll
/// takes.
///
/// ```text
/// handler                      holder of the lock
/// flag = true                  unlock
/// fence                        fence
/// try_lock: fails              flag? then try_lock, flag = false, poll, unlock, and look again
/// ```
///
/// **Interrupts out** go to `irq`, with the device, which knows a function's messages. It is called with the lock held, so that
/// changes arrive in the order in which the device made them; and from the interrupt handler too. So it must not use this
/// device, nor wait for a lock that is held with interrupts on: it sets a bit in an atomic, sends an interprocessor interrupt, writes
/// an interrupt controller's register.
///
/// **A write that has to wait** ([`WriteStatus::Pending`]) waits in [`Self::write`]. A hypervisor that can let the vCPU sleep
/// calls [`Self::start_write`] instead.
///
/// `R` says what a processor does while it waits: [`Spin`], or a scheduler's yield.
pub struct SharedDevice<D, M, H, I, const Q: usize = 1, R = Spin> {
    registers: Range<GuestAddr>,
    memory: M,
    irq: I,
    /// An interrupt handler wants a poll.
    poll_wanted: AtomicBool,
    /// The last poll left work that needs no completion.
    work_left: AtomicBool,
    inner: SpinMutex<Inner<D, H, Q>, R>,
}

struct Inner<D, H, const Q: usize> {
    device: D,
    storage: [H; Q],
    /// A write or a reset waits.
    pending: bool,
    /// Counts how often those that waited were done.
    settled: u32,
}

/// A write or a reset that has not yet taken effect. The vCPU that made it must not run until [`SharedDevice::has_settled`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct PendingWrite {
    settled: u32,
}

impl<D, M, H, I, const Q: usize, R> SharedDevice<D, M, H, I, Q, R> {
    /// A device whose registers, [`Region::Bar`]\(0\), are at `registers`.
    pub const fn new(registers: Range<GuestAddr>, device: D, memory: M, storage: [H; Q], irq: I) -> Self {
        let inner = SpinMutex::new(Inner { device, storage, pending: false, settled: 0 });
        let (poll_wanted, work_left) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { registers, memory, irq, poll_wanted, work_left, inner }
    }

    /// The guest's memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Whether the last poll left work, for which to call [`Self::poll`].
    pub fn has_work(&self) -> bool {
        self.work_left.load(Ordering::Relaxed)
    }
}

impl<D, M, H, I, const Q: usize, R> SharedDevice<D, M, H, I, Q, R>
where
    D: Device<M, [H]>,
    I: Fn(&D, IrqChange),
    R: RelaxStrategy,
{
    /// A vCPU reads `width` bytes at `offset` of `region`.
    pub fn read(&self, region: Region, offset: u64, width: Width) -> u64 {
        self.with_lock(|inner| {
            let read = inner.device.read(region, offset, width, &self.memory, &mut inner.storage);
            self.interrupt(&inner.device, read.irq);
            read.value
        })
    }

    /// A vCPU writes, and the device is polled once. Returns when the write has taken effect.
    ///
    /// A write that is [`WriteStatus::Pending`] is polled by this processor, which lets go of the lock in between: other vCPUs and
    /// the interrupt handler go on. What it waits for is what was in flight when it was made, at most as many operations as the
    /// device has slots, each of which the storage completes (`Storage`'s contract) or gives up
    /// ([`cancel_in_flight`](crate::storage::Storage::cancel_in_flight)). No timer ends the wait: the guest would take the device's
    /// word that nothing lands any more. A storage that never completes an operation keeps this vCPU, and no other.
    ///
    /// Not for interrupt handlers. With interrupts masked on this processor, the storage has to find its completions when it is
    /// polled, or its handler has to run on another.
    pub fn write(&self, region: Region, offset: u64, width: Width, value: u64) {
        self.wait(self.start_write(region, offset, width, value));
    }

    /// A vCPU writes, and the device is polled once. Returns what to wait for, if the write has not yet taken effect.
    #[must_use]
    pub fn start_write(&self, region: Region, offset: u64, width: Width, value: u64) -> Option<PendingWrite> {
        self.with_lock(|inner| {
            let write = inner.device.write(region, offset, width, value, &self.memory, &mut inner.storage);
            self.interrupt(&inner.device, write.irq);
            inner.pending |= write.value == WriteStatus::Pending;
            let pending = (write.value == WriteStatus::Pending).then_some(inner.settled);
            self.poll_inner(inner);
            pending.filter(|settled| *settled == inner.settled).map(|settled| PendingWrite { settled })
        })
    }

    /// Polls, and returns whether a write has taken effect by now.
    pub fn has_settled(&self, write: PendingWrite) -> bool {
        self.with_lock(|inner| {
            self.poll_inner(inner);
            inner.settled != write.settled
        })
    }

    /// Pulls the machine's reset line, and returns when the device is reset. It waits as [`Self::write`] does.
    pub fn reset(&self) {
        let pending = self.with_lock(|inner| {
            let settled = inner.settled;
            let progress = inner.device.reset(&self.memory, &mut inner.storage);
            inner.pending |= progress.pending_write;
            self.note(inner, progress);
            progress.pending_write.then_some(PendingWrite { settled })
        });
        self.wait(pending);
    }

    /// Makes bounded progress. Returns whether work is left that needs no completion, for which to call again.
    ///
    /// Call it after a write and after an interrupt, while [`Self::has_work`]: from the vCPU's loop or from an idle task.
    pub fn poll(&self) -> bool {
        self.with_lock(|inner| self.poll_inner(inner));
        self.has_work()
    }

    /// For the interrupt handler of the storage: polls once, or has it done by the processor that holds the lock. It never waits.
    pub fn handle_interrupt(&self) {
        self.poll_wanted.store(true, Ordering::Release);
        self.serve();
    }

    /// Looks at the device, or changes it, with the lock held.
    pub fn with<T>(&self, look: impl FnOnce(&mut D, &M, &mut [H]) -> T) -> T {
        self.with_lock(|inner| look(&mut inner.device, &self.memory, &mut inner.storage))
    }

    fn wait(&self, pending: Option<PendingWrite>) {
        let Some(pending) = pending else { return };
        while !self.has_settled(pending) {
            R::relax();
        }
    }

    fn with_lock<T>(&self, call: impl FnOnce(&mut Inner<D, H, Q>) -> T) -> T {
        let result = call(&mut self.inner.lock());
        self.serve();
        result
    }

    /// Polls for interrupt handlers that found the lock taken. Every holder calls this after letting go.
    fn serve(&self) {
        loop {
            // A handler sets the flag and then looks at the lock; a holder lets go of the lock and then looks at the flag. With a
            // fence between the two on either side, one of them sees what the other did.
            fence(Ordering::SeqCst);
            if !self.poll_wanted.load(Ordering::Relaxed) {
                return;
            }
            // Whoever holds the lock now comes here afterwards.
            let Some(mut inner) = self.inner.try_lock() else { return };
            if self.poll_wanted.swap(false, Ordering::AcqRel) {
                self.poll_inner(&mut inner);
            }
        }
    }

    fn poll_inner(&self, inner: &mut Inner<D, H, Q>) {
        let progress = inner.device.poll(&self.memory, &mut inner.storage);
        self.note(inner, progress);
    }

    fn note(&self, inner: &mut Inner<D, H, Q>, progress: Progress) {
        if inner.pending && !progress.pending_write {
            inner.pending = false;
            inner.settled = inner.settled.wrapping_add(1);
        }
        self.work_left.store(progress.again, Ordering::Relaxed);
        self.interrupt(&inner.device, progress.irq);
    }

    fn interrupt(&self, device: &D, change: IrqChange) {
        if change != IrqChange::NONE {
            (self.irq)(device, change);
        }
    }
}

impl<D, M, H, I, const Q: usize, R> MmioDevice for SharedDevice<D, M, H, I, Q, R>
where
    D: Device<M, [H]> + Send,
    M: Sync,
    H: Send,
    I: Fn(&D, IrqChange) + Sync,
    R: RelaxStrategy + Sync,
{
    fn address_range(&self) -> Range<GuestAddr> {
        self.registers.clone()
    }

    fn read(&self, addr: GuestAddr, width: Width) -> u64 {
        let Some(offset) = self.offset(addr) else { return width.ones() };
        self.read(Region::Bar(0), offset, width)
    }

    fn write(&self, addr: GuestAddr, width: Width, value: u64) {
        let Some(offset) = self.offset(addr) else { return };
        self.write(Region::Bar(0), offset, width, value);
    }

    fn poll(&self) -> bool {
        self.poll()
    }

    fn handle_interrupt(&self) {
        self.handle_interrupt();
    }
}

impl<D, M, H, I, const Q: usize, R> SharedDevice<D, M, H, I, Q, R> {
    fn offset(&self, addr: GuestAddr) -> Option<u64> {
        self.registers.contains(&addr).then(|| addr.0.wrapping_sub(self.registers.start.0))
    }
}

impl<D, M, H, I, const Q: usize, R> fmt::Debug for SharedDevice<D, M, H, I, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDevice").field("registers", &self.registers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
