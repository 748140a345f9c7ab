//! The smallest front there can be: requests go straight to a sequencer. A reference for the explorer.

use blk_core::mutant::{Mutant, active};
use blk_core::op::{Op, Segment};
use blk_core::order::{Done, GuestCache, Order, Request, Sequencer};
use blk_core::sim::{Action, Ended, Guest, Outcome, SectorRun, layout, read_back};
use blk_core::storage::Storage;
use blk_core::units::{Extent, GuestAddr};
use heapless::Vec;
use serde::Serialize;

/// Steps outstanding at once.
const DEPTH: usize = 3;

/// A device of `Q` queues and its driver. Step `n` goes to queue `n % Q`.
#[derive(Clone, Serialize)]
pub struct Direct<const Q: usize> {
    queues: Vec<Queue, Q>,
    driver: Driver,
    /// The device's write cache is on.
    cache: bool,
    control: Control,
}

/// What the driver knows how to do.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Driver {
    /// Everything.
    Whole,
    /// Until the first reset everything; after it another takes over, which knows of no write cache and no flush.
    FirmwareThenOld,
    /// Knows of no write cache and no flush, so that the device must be write-through.
    Old,
    /// Believes that there is no write cache, on a device that has one: IDE in 2009.
    Misled,
    /// Issues barriers as plain writes and does not drain: virtio in 2009.
    WithoutBarriers,
}

#[derive(Clone, Serialize)]
struct Queue {
    sequencer: Sequencer<u8, DEPTH>,
    /// What the guest put there, and the device has not taken.
    unpopped: Vec<(u8, Action), DEPTH>,
    /// What the device has taken and the guest has not seen end.
    outstanding: Vec<(u8, Action), DEPTH>,
}

/// A register write that the vCPU waits for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
enum Control {
    Idle,
    CacheOff { id: u8, submitted: bool },
    Reset { id: u8 },
    Done { id: u8, outcome: Outcome },
}

impl<const Q: usize> Direct<Q> {
    pub fn boot<M, H: Storage<M>>(driver: Driver, _memory: &M, storage: &mut [H]) -> Self {
        let queue = Queue { sequencer: Sequencer::new(), unpopped: Vec::new(), outstanding: Vec::new() };
        let cache = driver != Driver::Old && storage[0].info().has_volatile_cache();
        Self { queues: (0..Q).map(|_| queue.clone()).collect(), driver, cache, control: Control::Idle }
    }

    /// What a write is worth, as the device told the guest.
    fn told(&self) -> GuestCache {
        if self.cache { GuestCache::WriteBack } else { GuestCache::WriteThrough }
    }

    fn queue_of(id: u8) -> usize {
        usize::from(id) % Q
    }

    /// Takes what can be taken, in order.
    fn admit<M: blk_core::memory::GuestMemory, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
        ended: &mut Vec<Ended, 16>,
    ) {
        let told = self.told();
        let barriers = self.driver != Driver::WithoutBarriers;
        for (index, handle) in storage.iter_mut().enumerate().take(Q) {
            while let Some(&(id, action)) = self.queues[index].unpopped.first() {
                let queue = &mut self.queues[index];
                let (request, segments) = decode(id, action, barriers);
                match queue.sequencer.submit(memory, handle, &request, told, &segments, id) {
                    Ok(started) => {
                        queue.unpopped.remove(0);
                        queue.outstanding.push((id, action)).unwrap();
                        ended.extend(started.done().and_then(|done| self.finished(index, done, memory)));
                    }
                    Err(_hold) => break,
                }
            }
        }
    }

    fn collect<M: blk_core::memory::GuestMemory, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
        ended: &mut Vec<Ended, 16>,
    ) {
        for (index, handle) in storage.iter_mut().enumerate().take(Q) {
            while let Some((slot, _)) = self.queues[index].sequencer.needs_segments() {
                let queue = &mut self.queues[index];
                let id = *queue.sequencer.payload(slot).unwrap();
                let &(_, action) = queue.outstanding.iter().find(|o| o.0 == id).unwrap();
                let (_, segments) = decode(id, action, true);
                let supplied = queue.sequencer.supply_segments(memory, handle, slot, &segments);
                let Ok(started) = supplied else { break };
                ended.extend(started.done().and_then(|done| self.finished(index, done, memory)));
            }
            while let Some(done) = self.queues[index].sequencer.poll(memory, handle) {
                ended.extend(self.finished(index, done, memory));
            }
        }
    }

    /// A request of a queue is done; the cache switch is reported by [`Self::control`].
    fn finished<M: blk_core::memory::GuestMemory>(
        &mut self,
        queue: usize,
        done: Done,
        memory: &M,
    ) -> Option<Ended> {
        let queue = &mut self.queues[queue];
        let id = queue.sequencer.release(done.slot)?;
        if let Control::CacheOff { id: switch, submitted: true } = self.control
            && switch == id
        {
            self.cache &= done.result.is_err();
            let outcome = if done.result.is_ok() { Outcome::DONE } else { Outcome::Failed };
            self.control = Control::Done { id, outcome };
            return None;
        }
        let at = queue.outstanding.iter().position(|o| o.0 == id).unwrap();
        let (_, action) = queue.outstanding.remove(at);
        let outcome = match (done.result, action) {
            (Err(_), _) => Outcome::Failed,
            (Ok(()), Action::Read(run)) => Outcome::Ok { read: read_back(memory, id, run) },
            (Ok(()), _) => Outcome::DONE,
        };
        Some(Ended { id, outcome })
    }

    /// Lets the register write that the vCPU waits for make progress.
    fn control<M: blk_core::memory::GuestMemory, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut [H],
        ended: &mut Vec<Ended, 16>,
    ) {
        match self.control {
            Control::Idle | Control::CacheOff { submitted: true, .. } => {}
            Control::CacheOff { id, submitted: false } => {
                let others = self.queues[1..].iter().all(|queue| queue.sequencer.is_idle());
                if !others && !active(Mutant::CacheSwitchInFlight) {
                    return;
                }
                let flush = Request::new(Op::Flush).ordered(Order::Barrier);
                let told = self.told();
                let queue = &mut self.queues[0].sequencer;
                if let Ok(started) = queue.submit(memory, &mut storage[0], &flush, told, &[], id) {
                    self.control = Control::CacheOff { id, submitted: true };
                    let ordinary = started.done().and_then(|done| self.finished(0, done, memory));
                    assert!(ordinary.is_none(), "it is the cache switch");
                }
            }
            Control::Reset { id } => {
                let reached = if active(Mutant::ResetOneQueueOnly) { 1 } else { Q };
                let mut queues = self.queues.iter_mut().zip(storage.iter_mut()).take(reached);
                if queues.any(|(queue, handle)| !queue.sequencer.finish_reset(handle)) {
                    return;
                }
                self.come_up_again(id, storage, ended);
            }
            Control::Done { id, outcome } => {
                self.control = Control::Idle;
                ended.push(Ended { id, outcome }).unwrap();
            }
        }
    }

    fn come_up_again<M, H: Storage<M>>(&mut self, id: u8, storage: &[H], ended: &mut Vec<Ended, 16>) {
        for queue in &mut self.queues {
            let lost = queue.outstanding.iter().chain(&queue.unpopped);
            for &(id, _) in lost {
                ended.push(Ended { id, outcome: Outcome::Aborted }).unwrap();
            }
            if active(Mutant::ResetReexecutes) {
                queue.unpopped = queue.outstanding.clone();
            } else {
                queue.unpopped.clear();
            }
            queue.outstanding.clear();
            if active(Mutant::ResetOneQueueOnly) {
                // The other queues forget, and do not wait.
                let stale = core::mem::take(&mut queue.sequencer);
                assert!(stale.in_use() <= DEPTH as u32);
            }
        }
        if self.driver == Driver::FirmwareThenOld {
            self.driver = Driver::Old;
        }
        if !active(Mutant::CacheSettingLeaks) {
            self.cache = self.driver != Driver::Old && storage[0].info().has_volatile_cache();
        }
        self.control = Control::Done { id, outcome: Outcome::DONE };
    }
}

impl<M: blk_core::memory::GuestMemory, H: Storage<M>, const Q: usize> Guest<M, [H]> for Direct<Q> {
    fn alphabet(&self) -> &'static [Action] {
        match self.driver {
            Driver::Old | Driver::Misled => &WITHOUT_FLUSH,
            Driver::WithoutBarriers => &WITHOUT_CACHE,
            _ if Q > 1 => &WITHOUT_BARRIER,
            Driver::Whole | Driver::FirmwareThenOld => &ALPHABET,
        }
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn accepts(&self, _action: Action) -> bool {
        self.control == Control::Idle
    }

    fn issue(&mut self, id: u8, action: Action, _memory: &M, storage: &mut [H]) {
        match action {
            Action::CacheOff if !self.cache => self.control = Control::Done { id, outcome: Outcome::DONE },
            Action::CacheOff => self.control = Control::CacheOff { id, submitted: false },
            Action::CacheOn => {
                self.cache = storage[0].info().has_volatile_cache();
                self.control = Control::Done { id, outcome: Outcome::DONE };
            }
            Action::Reset => {
                let reached = if active(Mutant::ResetOneQueueOnly) { 1 } else { Q };
                self.queues.iter_mut().take(reached).for_each(|queue| queue.sequencer.reset());
                self.control = Control::Reset { id };
            }
            _ => self.queues[Self::queue_of(id)].unpopped.push((id, action)).unwrap(),
        }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Vec<Ended, 16> {
        let mut ended = Vec::new();
        // Twice, for what was taken meanwhile and is done at once.
        for _ in 0..2 {
            self.collect(memory, storage, &mut ended);
            self.control(memory, storage, &mut ended);
            if self.control == Control::Idle {
                self.admit(memory, storage, &mut ended);
            }
        }
        ended
    }

    fn write_cache(&self) -> bool {
        self.cache && !matches!(self.driver, Driver::Old | Driver::Misled)
    }

    fn ordered_crash(&self) -> bool {
        self.driver != Driver::WithoutBarriers
    }
}

const ALPHABET: [Action; 14] = [
    Action::Write(SectorRun::ZERO),
    Action::Write(SectorRun::ONE),
    Action::Write(SectorRun::BOTH),
    Action::WriteOrdered(SectorRun::ONE),
    Action::WriteFua(SectorRun::ZERO),
    Action::WriteZeroes(SectorRun::ZERO),
    Action::Discard(SectorRun::ZERO),
    Action::Read(SectorRun::ZERO),
    Action::Read(SectorRun::BOTH),
    Action::Flush,
    Action::CacheOff,
    Action::CacheOn,
    Action::Reset,
    Action::WriteFua(SectorRun::BOTH),
];
const WITHOUT_BARRIER: [Action; 9] = [
    Action::Write(SectorRun::ZERO),
    Action::Write(SectorRun::BOTH),
    Action::WriteFua(SectorRun::ZERO),
    Action::WriteZeroes(SectorRun::ZERO),
    Action::Read(SectorRun::ZERO),
    Action::Flush,
    Action::CacheOff,
    Action::CacheOn,
    Action::Reset,
];
const WITHOUT_FLUSH: [Action; 5] = [
    Action::Write(SectorRun::ZERO),
    Action::Write(SectorRun::BOTH),
    Action::WriteZeroes(SectorRun::ZERO),
    Action::Read(SectorRun::ZERO),
    Action::Reset,
];
const WITHOUT_CACHE: [Action; 4] = [
    Action::Write(SectorRun::ZERO),
    Action::WriteOrdered(SectorRun::ONE),
    Action::Read(SectorRun::BOTH),
    Action::Reset,
];

fn decode(id: u8, action: Action, barriers: bool) -> (Request, Vec<Segment, 1>) {
    let extent = |run: SectorRun| Extent::new(u64::from(run.first), u64::from(run.count));
    let segment = |addr: GuestAddr, run: SectorRun| {
        Vec::from_slice(&[Segment::Guest { addr, len: u32::from(run.count) * 512 }]).unwrap()
    };
    let order = if barriers { Order::Barrier } else { Order::Free };
    let write = |run| {
        (Request::new(Op::Write { extent: extent(run), fua: false }), segment(layout::source(id + 1), run))
    };
    match action {
        Action::Write(run) => write(run),
        Action::WriteFua(run) => {
            let (request, segments) = write(run);
            (request.with_fua(true), segments)
        }
        Action::WriteOrdered(run) => {
            let (request, segments) = write(run);
            (request.ordered(order), segments)
        }
        Action::WriteZeroes(run) => {
            (Request::new(Op::WriteZeroes { extent: extent(run), may_unmap: true }), Vec::new())
        }
        Action::Discard(run) => (Request::new(Op::Discard { extent: extent(run) }), Vec::new()),
        Action::Read(run) => (Request::new(Op::Read { extent: extent(run) }), segment(layout::sink(id), run)),
        Action::Flush => (Request::new(Op::Flush), Vec::new()),
        Action::CacheOff | Action::CacheOn | Action::Reset => unreachable!("not a request"),
    }
}
