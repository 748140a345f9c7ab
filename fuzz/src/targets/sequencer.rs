//! The sequencer over a disk that is late, out of order, busy and failing.

use std::collections::BTreeMap;

use blk_core::op::{Op, Segment};
use blk_core::order::{Deferred, GuestCache, Order, Request, Sequencer};
use blk_core::snapshot;
use blk_core::storage::{Cache, Storage as _};
use blk_core::units::{Extent, GuestAddr, SECTOR_BYTES};

use crate::disk::{Disk, Event, Handle, Kind, stamp, value};
use crate::memory::Memory;
use crate::oracle::{Act, Oracle, Ticket};
use crate::program::{parse, seed};
use crate::{choices, record};

const SLOTS: usize = 4;
const SECTORS: u64 = 8;
/// Each slot has as many bytes of guest memory as the disk has.
const BUFFER_BYTES: u64 = SECTORS * SECTOR_BYTES as u64;
const SNAPSHOT: snapshot::Kind = snapshot::Kind { name: *b"SEQR", version: 0 };

record! {
    /// One request.
    pub struct Ask {
        /// Operation, FUA, order, the cache as the guest was told: see [`Ask::request`].
        pub what: u8,
        /// First sector and length.
        pub at: u8,
    }
}

choices! {
    /// What the owner of the sequencer does, or the disk.
    pub enum Action {
        /// Offers a request.
        Submit { ask: Ask },
        /// The disk does something.
        Disk { event: Event },
        /// Polls, and releases what ended.
        Poll,
        /// Polls, and lets what ended well go on with another operation.
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

impl Ask {
    fn extent(self) -> Extent {
        let start = u64::from(self.at) % SECTORS;
        Extent::new(start, (1 + u64::from(self.at >> 3) % 4).min(SECTORS - start))
    }

    fn request(self) -> (Request, GuestCache) {
        let (extent, may_unmap) = (self.extent(), self.at & 0x80 != 0);
        let op = match self.what % 8 {
            0..=2 => Op::Write { extent, fua: false },
            3 => Op::Read { extent },
            4 | 5 => Op::Flush,
            6 => Op::WriteZeroes { extent, may_unmap },
            _ => Op::Discard { extent },
        };
        let order = if self.what & 0x60 == 0x60 { Order::Barrier } else { Order::Free };
        let cache = if self.what & 0x80 == 0 { GuestCache::WriteBack } else { GuestCache::WriteThrough };
        (Request::new(op).with_fua(self.what & 0x18 == 0x18).ordered(order), cache)
    }
}

/// What the test knows of a request in a slot.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The payload.
    id: u32,
    request: Request,
    /// By what the guest was told, it survives a power cut once it is done.
    stable: bool,
    ticket: Ticket,
    /// Whether a durable operation had failed before it was taken.
    latched: bool,
}

struct Rig {
    memory: Memory,
    disk: Handle,
    queue: Sequencer<u32, SLOTS>,
    oracle: Oracle,
    live: BTreeMap<u16, Known>,
    taken: u32,
    ended: u32,
    resetting: bool,
    busy: bool,
}

/// Runs a program of [`Kind`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((kind, actions)) = parse::<Kind, Action>(data) else { return };
    // The models refuse writes to a read-only disk before they get here.
    let kind = Kind { flags: kind.flags & 0b111, ..kind };
    let memory_bytes = BUFFER_BYTES * SLOTS as u64;
    let mut rig = Rig {
        memory: Memory::new(memory_bytes as usize),
        disk: Disk::open(kind, SECTORS, 1).remove(0),
        queue: Sequencer::new(),
        oracle: Oracle::default(),
        live: BTreeMap::new(),
        taken: 0,
        ended: 0,
        resetting: false,
        busy: false,
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
            Action::Disk { event } => {
                if let Event::Busy { on } = event {
                    self.busy = on;
                }
                self.disk.happen(&self.memory, event);
            }
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
                self.resetting = true;
            }
            Action::FinishReset => self.finish_reset(),
            Action::Restore => {
                let mut bytes = [0; 1024];
                let saved = snapshot::save(SNAPSHOT, &self.queue, &mut bytes).expect("it fits");
                self.queue = snapshot::load(SNAPSHOT, saved).expect("it was saved");
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
        let segments = foretold.map_or(Vec::new(), |slot| self.segments(slot, request.op));
        if let Some(slot) = foretold {
            self.fill(slot, request.op);
        }
        let (memory, disk) = (&self.memory, &mut self.disk);
        let result = self.queue.submit(memory, disk, &request, cache, &segments, self.taken);
        let in_use = self.live.len();
        let barrier = self.barrier();
        match result {
            Ok(slot) => {
                assert!(!self.resetting && !self.busy && barrier.is_none(), "{request:?} was taken");
                assert!(request.order == Order::Free || in_use == 0, "a barrier passed older requests");
                assert_eq!(Some(slot), foretold, "the slot was foretold");
                self.begin(slot, self.taken, request, cache);
                self.taken += 1;
            }
            Err(Deferred::Busy) => assert!(self.busy),
            Err(Deferred::Full) => assert_eq!(in_use, SLOTS),
            Err(Deferred::Resetting) => assert!(self.resetting),
            Err(Deferred::Barrier) => {
                let older = request.order == Order::Barrier && in_use > 0;
                assert!(barrier.is_some() || older, "held for nothing");
            }
        }
    }

    fn begin(&mut self, slot: u16, id: u32, request: Request, cache: GuestCache) {
        let act = match request.op {
            Op::Write { extent, .. } => Act::Write(extent, self.oracle.next_value()),
            Op::Read { extent } => Act::Read(extent),
            Op::WriteZeroes { extent, .. } => Act::Zero(extent),
            Op::Discard { extent } => Act::Discard(extent),
            Op::Flush => Act::Flush,
        };
        let exclusive = request.order == Order::Barrier;
        let stable = request.fua || request.op.mutates() && (cache == GuestCache::WriteThrough || exclusive);
        let ticket = self.oracle.submit(act);
        let latched = self.disk.disk().is_latched();
        self.live.insert(slot, Known { id, request, stable, ticket, latched });
    }

    /// Polls once; what ended goes on with `next` if it ended well, and is released otherwise. Whether anything ended.
    fn poll(&mut self, next: Option<Ask>) -> bool {
        let Some(done) = self.queue.poll(&self.memory, &mut self.disk) else { return false };
        assert!(!self.resetting, "a reset reports nothing");
        self.end(done.slot, done.result.is_ok());
        match next.filter(|_| done.result.is_ok()) {
            None => self.release(done.slot),
            Some(ask) => {
                let known = self.live[&done.slot];
                let (request, cache) = self.request(ask);
                let request = request.ordered(known.request.order);
                self.fill(done.slot, request.op);
                let segments = self.segments(done.slot, request.op);
                let (memory, disk) = (&self.memory, &mut self.disk);
                self.queue.advance(memory, disk, done.slot, &request, cache, &segments);
                self.begin(done.slot, known.id, request, cache);
            }
        }
        true
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
        let promises = op.mutates() || op == Op::Flush || known.request.fua;
        assert!(
            !(ok && promises && known.latched),
            "{known:?} ended well after a durable operation had failed"
        );
        self.oracle.end(known.ticket, ok, known.stable);
    }

    fn release(&mut self, slot: u16) {
        let known = self.live.remove(&slot);
        assert_eq!(self.queue.release(slot), known.map(|known| known.id), "released once, with its payload");
        assert_eq!(self.queue.release(slot), None);
        self.ended += 1;
    }

    fn supply(&mut self) {
        let Some((slot, op)) = self.queue.needs_segments() else { return };
        let known = self.live[&slot];
        let asked = matches!((op, known.request.op), (Op::Write { .. }, Op::Write { .. }));
        assert!(asked || op == known.request.op, "{slot} wants {op:?} for {known:?}");
        let segments = self.segments(slot, op);
        let supplied = self.queue.supply_segments(&self.memory, &mut self.disk, slot, &segments);
        assert_eq!(supplied.is_err(), self.busy);
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
        self.busy = false;
        self.disk.settle(&self.memory);
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

    /// Puts the data of a write into the slot's buffer.
    fn fill(&self, slot: u16, op: Op) {
        if let Op::Write { extent, .. } = op {
            for index in 0..extent.sectors {
                self.memory.put(buffer(slot) + index * 512, &stamp(self.oracle.next_value()));
            }
        }
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
    let programs: [&[Action]; 6] = [
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
    let kinds = [Kind::WRITE_BACK, Kind { cache: 1, flags: 1 }, Kind { cache: 0, flags: 0 }];
    let all = kinds.iter().flat_map(|kind| programs.iter().map(move |program| seed(kind, program)));
    all.collect()
}
