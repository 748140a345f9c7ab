//! The sequencer over a disk that is prompt or late, out of order, busy and failing.

mod request;
mod witness;

use std::collections::BTreeMap;

use blk_core::op::{Op, Segment};
use blk_core::order::{Deferred, Done, GuestCache, Order, Request, Sequencer, Started, plan};
use blk_core::snapshot;
use blk_core::storage::{Cache, Storage as _, Submission};
use blk_core::units::{GuestAddr, SECTOR_BYTES};

use crate::choices;
use crate::contents::{stamp, value};
use crate::disk::{Disk, Event, Kind};
use crate::memory::Memory;
use crate::oracle::{Act, Oracle};
use crate::program::{parse, seed};

use request::{Ask, Known, SECTORS};
use witness::Witness;

const SLOTS: usize = 4;
/// Each slot has as many bytes of guest memory as the disk has.
const BUFFER_BYTES: u64 = SECTORS * SECTOR_BYTES as u64;
const SNAPSHOT: snapshot::Kind = snapshot::Kind::new(*b"SEQR", 0);

choices! {
    /// What the owner of the sequencer does, or the disk.
    pub enum Action {
        /// Offers a request.
        Submit { ask: Ask },
        /// The disk does something.
        Disk { event: Event },
        /// Releases a request that ended at once, or polls and releases what ended.
        Poll,
        /// The same, but one that ended well goes on with another operation.
        Advance { ask: Ask },
        /// Supplies the segments of a slot that wants them.
        Supply,
        /// Gives up on a slot that wants its segments.
        GiveUp,
        /// Begins a reset.
        Reset,
        /// Asks whether the reset is over.
        FinishReset,
        /// Saves and restores.
        Restore,
    }
}

struct Rig {
    memory: Memory,
    disk: Witness,
    queue: Sequencer<u32, SLOTS>,
    oracle: Oracle,
    live: BTreeMap<u16, Known>,
    /// The slots whose requests ended at once, and whether well. They are not released yet.
    reported: BTreeMap<u16, bool>,
    taken: u32,
    ended: u32,
    resetting: bool,
}

/// Runs a program of [`Kind`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((kind, actions)) = parse::<Kind, Action>(data) else { return };
    // The models refuse writes to a read-only disk before they get here.
    let kind = Kind { flags: kind.flags & 0b1000_0111, ..kind };
    let memory_bytes = BUFFER_BYTES * SLOTS as u64;
    let mut rig = Rig {
        memory: Memory::new(memory_bytes as usize),
        disk: Witness::new(Disk::open(kind, SECTORS, 1).remove(0)),
        queue: Sequencer::new(),
        oracle: Oracle::default(),
        live: BTreeMap::new(),
        reported: BTreeMap::new(),
        taken: 0,
        ended: 0,
        resetting: false,
    };
    rig.memory.lend(0..memory_bytes);
    for action in actions {
        rig.act(action);
        rig.check();
    }
    rig.drain();
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Submit { ask } => self.submit(ask),
            Action::Disk { event } => self.disk.handle.happen(&self.memory, event),
            Action::Poll => drop(self.poll(None)),
            Action::Advance { ask } => drop(self.poll(Some(ask))),
            Action::Supply => self.supply(),
            Action::GiveUp => {
                if let Some((slot, _)) = self.queue.needs_segments() {
                    self.end(slot, false);
                    self.release(slot);
                }
            }
            Action::Reset => {
                self.queue.reset();
                self.reported.clear();
                self.resetting = true;
            }
            Action::FinishReset => self.finish_reset(),
            Action::Restore => {
                let mut bytes = [0; 1024];
                let saved = snapshot::encode(SNAPSHOT, &self.queue, &mut bytes).expect("it fits");
                self.queue = snapshot::decode(SNAPSHOT, saved).expect("it was saved");
            }
        }
    }

    /// The request, and what the guest was told: on a disk without a cache, that there is none.
    fn request(&self, ask: Ask) -> (Request, GuestCache) {
        let (request, cache) = ask.request();
        let told = self.disk.info().has_volatile_cache();
        (request, if told { cache } else { GuestCache::WriteThrough })
    }

    fn submit(&mut self, ask: Ask) {
        let (request, cache) = self.request(ask);
        let foretold = self.queue.next_slot();
        let segments = foretold.map_or(Vec::new(), |slot| self.fill(slot, request.op));
        let (busy, latched) = (self.disk.disk().is_busy(), self.disk.disk().is_latched());
        let (memory, disk, id) = (&self.memory, &mut self.disk, self.taken);
        let result = if ask.by_other_call() {
            let slot = foretold.unwrap_or(0);
            let started = self.queue.start(memory, disk, request, cache, &segments, id);
            started.map(|submission| match submission {
                Submission::Pending => Started::InFlight(slot),
                Submission::Done(result) => Started::Ended(Done { slot, result }),
            })
        } else {
            self.queue.submit(memory, disk, &request, cache, &segments, id)
        };
        let in_use = self.live.len();
        let barrier = self.barrier();
        match result {
            Ok(started) => {
                assert!(!self.resetting && !busy && barrier.is_none(), "{request:?} was taken");
                assert!(request.order == Order::Free || in_use == 0, "a barrier passed older requests");
                let slot = foretold.expect("a slot was foretold");
                self.begin(slot, id, (request, cache), latched);
                self.taken += 1;
                self.started(slot, started);
                if ask.by_other_call() && self.reported.remove(&slot).is_some() {
                    // It has no slot any more.
                    self.live.remove(&slot);
                    self.ended += 1;
                }
            }
            Err(Deferred::Busy) => assert!(busy),
            Err(Deferred::Full) => assert_eq!(in_use, SLOTS),
            Err(Deferred::Resetting) => assert!(self.resetting),
            Err(Deferred::Barrier) => {
                let older = request.order == Order::Barrier && in_use > 0;
                assert!(barrier.is_some() || older, "held for nothing");
            }
        }
        assert!(self.disk.given.is_empty(), "the disk was given an operation of a request that was refused");
    }

    fn begin(&mut self, slot: u16, id: u32, (request, cache): (Request, GuestCache), latched: bool) {
        let act = match request.op {
            Op::Write { extent, .. } => Act::Write(extent, self.oracle.next_value()),
            Op::Read { extent } => Act::Read(extent),
            Op::WriteZeroes { extent, .. } => Act::Zero(extent),
            Op::Discard { extent } => Act::Discard(extent),
            Op::Flush => Act::Flush,
            Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {
                unreachable!("none is asked for")
            }
        };
        let exclusive = request.order == Order::Barrier;
        let stable = request.fua || request.op.mutates() && (cache == GuestCache::WriteThrough || exclusive);
        let ticket = self.oracle.submit(act);
        let plan = plan(&request, cache, self.disk.info());
        self.live.insert(slot, Known { id, request, plan, given: 0, stable, ticket, latched });
    }

    /// Checks where the request of a slot stands now that the disk was given what it takes.
    fn started(&mut self, slot: u16, started: Started) {
        self.follow();
        assert_eq!(started.slot(), slot);
        match started {
            Started::InFlight(_) => {
                let disk = self.disk.disk();
                assert!(disk.has_operation(0, slot) || disk.is_busy(), "{slot} waits for nothing");
            }
            Started::Ended(done) => {
                self.reported.insert(slot, done.result.is_ok());
                self.done(done);
            }
        }
    }

    /// Each operation that the disk took was the next one of its request's plan.
    fn follow(&mut self) {
        for (slot, op) in self.disk.given.drain(..) {
            let known = self.live.get_mut(&slot).expect("a request is in the slot");
            assert_eq!(Some(op), known.left().next(), "the next operation of {known:?}");
            known.given += 1;
        }
    }

    /// One request that has ended goes on with `next` if it ended well, and is released otherwise. Whether there was one.
    fn poll(&mut self, next: Option<Ask>) -> bool {
        let (slot, ok) = match self.reported.pop_first() {
            Some(reported) => reported,
            None => {
                let done = self.queue.poll(&self.memory, &mut self.disk);
                self.follow();
                let Some(done) = done else { return false };
                assert!(!self.resetting, "a reset reports nothing");
                self.done(done);
                (done.slot, done.result.is_ok())
            }
        };
        match next.filter(|_| ok) {
            None => self.release(slot),
            Some(ask) => self.advance(slot, ask),
        }
        true
    }

    fn advance(&mut self, slot: u16, ask: Ask) {
        let known = self.live[&slot];
        let (request, cache) = self.request(ask);
        let request = request.ordered(known.request.order);
        let segments = self.fill(slot, request.op);
        let latched = self.disk.disk().is_latched();
        let (memory, disk) = (&self.memory, &mut self.disk);
        let started = if ask.by_other_call() {
            self.queue.advance_later::<Memory, _>(disk, slot, &request, cache);
            None
        } else {
            Some(self.queue.advance(memory, disk, slot, &request, cache, &segments))
        };
        self.begin(slot, known.id, (request, cache), latched);
        if let Some(started) = started {
            self.started(slot, started);
        }
        assert!(self.disk.given.is_empty(), "nothing is submitted before the segments are supplied");
    }

    /// Checks the end of a request against that of its last operation, and against its plan.
    fn done(&mut self, Done { slot, result }: Done) {
        let known = self.live[&slot];
        assert!(!self.disk.disk().has_operation(0, slot), "{known:?} ended with an operation in flight");
        assert_eq!(result, self.disk.results[&slot], "how the last operation of {known:?} ended");
        assert!(result.is_err() || known.left().next().is_none(), "{known:?} ended before its plan");
        self.end(slot, result.is_ok());
    }

    /// Checks how the operation of a slot ended.
    fn end(&mut self, slot: u16, ok: bool) {
        let known = self.live[&slot];
        let op = known.request.op;
        if let (Op::Read { extent }, true) = (op, ok) {
            for index in 0..extent.sectors {
                let sector: [u8; 512] = self.memory.get(buffer(slot) + index * 512);
                self.oracle.check_read(known.ticket, extent.start.0 + index, value(&sector));
            }
        }
        let promises = op.fails_when_latched() || known.request.fua;
        assert!(
            !(ok && promises && known.latched),
            "{known:?} ended well after a durable operation had failed"
        );
        self.oracle.end(known.ticket, ok, known.stable);
    }

    fn release(&mut self, slot: u16) {
        let known = self.live.remove(&slot);
        let payload = known.map(|known| known.id);
        assert_eq!(self.queue.release(slot), payload, "released once, with its payload");
        assert_eq!(self.queue.release(slot), None);
        self.ended += 1;
    }

    fn supply(&mut self) {
        let Some((slot, op)) = self.queue.needs_segments() else { return };
        let known = self.live[&slot];
        assert_eq!(op, known.plan.op, "{known:?} wants its segments");
        let segments = self.segments(slot, op);
        let busy = self.disk.disk().is_busy();
        let supplied = self.queue.supply_segments(&self.memory, &mut self.disk, slot, &segments);
        assert_eq!(supplied.is_err(), busy);
        if let Ok(started) = supplied {
            self.started(slot, started);
        }
        assert!(self.disk.given.is_empty(), "a refusal takes nothing");
    }

    fn finish_reset(&mut self) {
        let over = self.queue.finish_reset::<Memory, _>(&mut self.disk);
        assert_eq!(over, !self.queue.is_resetting());
        if self.resetting && over {
            assert_eq!(self.disk.disk().flying().count(), 0, "a reset waits for what was submitted");
            assert!(self.queue.is_idle());
            self.ended += self.live.len() as u32;
            self.live.clear();
            self.oracle.reset();
            self.resetting = false;
        }
    }

    fn barrier(&self) -> Option<u16> {
        let mut live = self.live.iter();
        live.find(|(_, known)| known.request.order == Order::Barrier).map(|(slot, _)| *slot)
    }

    /// What holds after every action.
    fn check(&self) {
        let disk = self.disk.disk();
        assert_eq!(self.queue.strays(), 0);
        if !self.resetting {
            let payloads = self.queue.payloads().map(|(slot, id)| (slot, *id));
            assert!(payloads.eq(self.live.iter().map(|(slot, known)| (*slot, known.id))));
            assert_eq!(self.queue.in_use() as usize, self.live.len());
        }
        let safe = disk.info().cache != Cache::Unsafe;
        if safe {
            self.oracle.check_medium(&disk);
        }
        if let Some(slot) = self.barrier() {
            for (_, tag, op) in disk.flying() {
                assert_eq!(tag.slot, slot, "beside a barrier");
                if safe && op.mutates() {
                    self.oracle.check_settled(&disk);
                }
            }
        }
    }

    /// With a disk that does its best, everything ends.
    fn drain(&mut self) {
        self.disk.handle.settle(&self.memory);
        for _ in 0..4 * SLOTS {
            while self.poll(None) {}
            self.supply();
            self.finish_reset();
            self.check();
        }
        assert!(self.queue.is_idle() && !self.queue.is_resetting() && self.disk.disk().is_idle());
        assert_eq!(self.ended, self.taken, "each request ends once");
        self.oracle.check_contents(&self.disk.disk());
    }

    /// Puts the data of a write into the slot's buffer, and returns the segments.
    fn fill(&self, slot: u16, op: Op) -> Vec<Segment> {
        if let Op::Write { extent, .. } = op {
            for index in 0..extent.sectors {
                self.memory.put(buffer(slot) + index * 512, &stamp(self.oracle.next_value()));
            }
        }
        self.segments(slot, op)
    }

    /// The slot's buffer, in two pieces.
    fn segments(&self, slot: u16, op: Op) -> Vec<Segment> {
        let (Op::Read { extent } | Op::Write { extent, .. }) = op else { return Vec::new() };
        let (len, first) = (extent.sectors as u32 * SECTOR_BYTES, 200);
        let piece = |from: u32, len| Segment::Guest { addr: GuestAddr(buffer(slot) + u64::from(from)), len };
        vec![piece(0, first), piece(first, len - first)]
    }
}

fn buffer(slot: u16) -> u64 {
    u64::from(slot) * BUFFER_BYTES
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let ask = |what, at| Ask { what, at };
    let submit = |what, at| Action::Submit { ask: ask(what, at) };
    let disk = |event| Action::Disk { event };
    let complete = |how| disk(Event::Complete { which: 0, how });
    let ended = [complete(2), Action::Poll];
    let at_once = |how| disk(Event::AtOnce { which: 0xff, how });
    let programs: [&[Action]; 8] = [
        // Write, flush.
        &[submit(0, 0), ended[0], ended[1], submit(4, 0), ended[0], ended[1]],
        // A FUA write, its flush busy at first.
        &[
            submit(0x18, 1),
            complete(2),
            disk(Event::Busy { on: true }),
            Action::Poll,
            disk(Event::Busy { on: false }),
        ],
        // A barrier: drain, flush, write, flush.
        &[
            submit(0, 0),
            submit(0x60, 1),
            ended[0],
            ended[1],
            submit(0x60, 1),
            submit(0, 2),
            ended[0],
            ended[1],
            Action::Supply,
            ended[0],
            ended[1],
            ended[0],
            ended[1],
        ],
        // Two operations of one request, the second finding the disk busy.
        &[
            submit(3, 9),
            complete(2),
            disk(Event::Busy { on: true }),
            Action::Advance { ask: ask(0, 9) },
            disk(Event::Busy { on: false }),
            Action::Supply,
            Action::Restore,
            ended[0],
            ended[1],
        ],
        // A reset with requests in flight.
        &[
            submit(0, 0),
            submit(0x18, 1),
            Action::Reset,
            ended[0],
            ended[1],
            Action::FinishReset,
            ended[0],
            ended[1],
        ],
        // At once: a FUA write, and a barrier, each finding the disk busy after its first operation.
        &[
            at_once(0x42),
            submit(0x18, 1),
            disk(Event::Busy { on: false }),
            Action::Poll,
            at_once(0x42),
            submit(0x60, 1),
            disk(Event::Busy { on: false }),
            Action::Supply,
            submit(0, 2),
            Action::Poll,
        ],
        // At once: one operation after another in a slot without a payload, the last in flight; and one that fails.
        &[
            at_once(2),
            submit(3, 0x29),
            Action::Advance { ask: ask(0, 9) },
            Action::Advance { ask: ask(0, 0x29) },
            Action::Supply,
            disk(Event::AtOnce { which: 0, how: 2 }),
            Action::Advance { ask: ask(4, 0) },
            ended[0],
            ended[1],
            at_once(0),
            submit(4, 0),
            Action::Poll,
        ],
        // A failed flush, and what comes after it.
        &[
            submit(0, 0),
            ended[0],
            ended[1],
            submit(4, 0),
            complete(0),
            Action::Poll,
            submit(4, 0),
            ended[0],
            ended[1],
        ],
    ];
    let kinds = [Kind::WRITE_BACK, Kind::AT_ONCE, Kind { cache: 1, flags: 1 }, Kind { cache: 0, flags: 0 }];
    let all = kinds.iter().flat_map(|kind| programs.iter().map(move |program| seed(kind, program)));
    all.collect()
}
