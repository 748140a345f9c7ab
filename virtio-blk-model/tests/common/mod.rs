//! A machine with one virtio-blk device: a driver's pen for whatever it may write, and a disk that does as it is told.

#![allow(dead_code, unused_imports, reason = "each test file uses some of it")]

use std::collections::VecDeque;

use blk_core::bus::{IrqChange, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::ram::plain_info;
use blk_core::sim::virtio::{self, RingLayout, Transport};
pub(crate) use blk_core::sim::virtio::{INDIRECT, NEXT, Piece, WRITE};
pub(crate) use blk_core::sim::{Bench, BenchRing};
use blk_core::storage::{Busy, Cache, Completion, Info, IoErrorKind, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use virtio_blk_model::device::{Blk, Config, Interface};
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::{Mmio, Pci};
use virtio_blk_model::wire::Features;

pub(crate) const SECTORS: u64 = 64;
pub(crate) const RING: u16 = 16;
const RINGS: u64 = 0x1000;
const RING_BYTES: u64 = 0x1000;
pub(crate) const HEADER: u64 = 0x8000;
pub(crate) const STATUS: u64 = 0x8100;
pub(crate) const DATA: u64 = 0x9000;
pub(crate) const TABLE: u64 = 0x8800;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const FLUSH_OUT: u32 = 5;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;
pub(crate) const SECURE_ERASE: u32 = 14;
pub(crate) const BARRIER: u32 = 1 << 31;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

pub(crate) type Memory = CellMemory<'static>;

/// A disk that notes what it is asked, and holds it until it is let go.
pub(crate) struct Disk {
    pub(crate) info: Info,
    pub(crate) data: Vec<u8>,
    pub(crate) log: Vec<Op>,
    /// Complete at once.
    pub(crate) eager: bool,
    pub(crate) busy: bool,
    /// What the operations after this many end with.
    pub(crate) fail: Option<(usize, IoErrorKind)>,
    pub(crate) in_flight: VecDeque<(Tag, Op, Vec<Segment>)>,
    done: VecDeque<Completion>,
}

impl Disk {
    pub(crate) fn new(cache: Cache) -> Self {
        let info = Info { discard: true, ..plain_info(SECTORS * 512, cache) };
        let data = (0..SECTORS * 512).map(|byte| (byte / 512) as u8).collect();
        let (log, in_flight, done) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { info, data, log, eager: true, busy: false, fail: None, in_flight, done }
    }

    /// Ends the oldest operation in flight.
    pub(crate) fn complete(&mut self, memory: &Memory) {
        let (tag, op, segments) = self.in_flight.pop_front().unwrap();
        let result = match &mut self.fail {
            Some((0, kind)) => Err((*kind).into()),
            fail => {
                if let Some((after, _)) = fail {
                    *after -= 1;
                }
                self.run(memory, op, &segments).map_err(Into::into)
            }
        };
        self.done.push_back(Completion { tag, result });
    }

    fn run(&mut self, memory: &Memory, op: Op, segments: &[Segment]) -> Result<(), IoErrorKind> {
        let Some(extent) = op.extent() else { return Ok(()) };
        assert!(extent.fits(self.info.sectors), "the model checks the range: {op:?}");
        let start = extent.offset_bytes().unwrap() as usize;
        let end = start + extent.bytes().unwrap() as usize;
        let data = &mut self.data[start..end];
        if matches!(op, Op::Read { .. } | Op::Write { .. }) {
            assert_eq!(total_bytes(segments), extent.bytes(), "the model's segments add up");
        }
        let mut at = 0;
        for segment in segments {
            let Segment::Guest { addr, len } = *segment else { panic!("nothing is staged") };
            let piece = &mut data[at..at + len as usize];
            at += len as usize;
            match op {
                Op::Read { .. } => memory.write(addr, piece),
                _ => memory.read(addr, piece),
            }
            .map_err(|_| IoErrorKind::Memory)?;
        }
        if matches!(op, Op::WriteZeroes { .. }) {
            data.fill(0);
        }
        Ok(())
    }
}

impl Storage<Memory> for Disk {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(
        &mut self,
        memory: &Memory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        if self.busy {
            return Err(Busy);
        }
        self.log.push(op);
        self.in_flight.push_back((tag, op, segments.to_vec()));
        if self.eager {
            self.complete(memory);
        }
        Ok(Submission::Pending)
    }

    fn poll(&mut self, _memory: &Memory) -> Option<Completion> {
        self.done.pop_front()
    }

    fn staging(&mut self, _slot: u16) -> &mut [u8] {
        &mut []
    }
}

/// A device on PCI.
pub(crate) type OnPci<const Q: usize> = PciFunction<Pci<Q, 8>, 31>;

pub(crate) struct Machine<const Q: usize = 1, D = Mmio<Q, 8>> {
    pub(crate) memory: Memory,
    pub(crate) device: D,
    legacy: bool,
    pub(crate) disks: Vec<Disk>,
    rings: [BenchRing; Q],
    pub(crate) line: bool,
    /// Messages that were due, by vector.
    pub(crate) messages: Vec<u8>,
}

pub(crate) fn ring(queue: usize) -> u64 {
    layout(queue).descriptors
}

fn layout(queue: usize) -> RingLayout {
    let at = RINGS + queue as u64 * RING_BYTES;
    RingLayout { entries: RING, descriptors: at, driver: at + 0x100, device: at + 0x140 }
}

/// Features that a modern driver takes by default.
pub(crate) fn modern() -> Features {
    Features::all().difference(Features::BARRIER | Features::EVENT_IDX)
}

impl<const Q: usize> Machine<Q> {
    /// A device that is up, with `disks`, for a driver that accepts what it is offered of `features`.
    pub(crate) fn new(config: Config, disks: Vec<Disk>, features: Features) -> Self {
        let mut machine = Self::off(config, disks);
        machine.bring_up(features);
        machine
    }

    pub(crate) fn off(config: Config, disks: Vec<Disk>) -> Self {
        Self::with(|config| Mmio::new(Blk::new(config)), config, disks)
    }

    pub(crate) fn ring(queue: usize) -> u64 {
        ring(queue)
    }
}

impl<const Q: usize> Machine<Q, OnPci<Q>> {
    /// A device on PCI before anything is enabled.
    pub(crate) fn on_pci(disks: Vec<Disk>) -> Self {
        let make = |config| PciFunction::new(Pci::new(Blk::new(config)), MsixOwner::Function);
        Self::with(make, Config::default(), disks)
    }

    pub(crate) fn configuration(&mut self, at: u64, width: Width) -> u64 {
        self.load(Region::Config, at, width)
    }

    /// Writes into configuration space, whatever comes of it.
    pub(crate) fn configure(&mut self, at: u64, width: Width, value: u64) {
        let _ = self.store(Region::Config, at, width, value);
    }

    /// Writes into the BAR, whatever comes of it.
    pub(crate) fn poke(&mut self, offset: u64, width: Width, value: u64) {
        let _ = self.write(offset, width, value);
    }
}

impl<const Q: usize, D: Transport<Memory, [Disk]>> Bench for Machine<Q, D> {
    type Memory = Memory;
    type Storage = [Disk];
    type Device = D;

    fn parts(&mut self) -> (&mut D, &Memory, &mut [Disk]) {
        (&mut self.device, &self.memory, &mut self.disks[..])
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn rings(&mut self) -> (&mut [BenchRing], &Memory) {
        (&mut self.rings, &self.memory)
    }

    fn hear(&mut self, irq: IrqChange) {
        if let Some(level) = irq.line(0) {
            self.line = level;
        }
        self.messages.extend((0..31).filter(|vector| irq.line(vector + 1) == Some(true)));
    }
}

impl<const Q: usize, D: Transport<Memory, [Disk]>> Machine<Q, D> {
    fn with(make: impl FnOnce(Config) -> D, config: Config, disks: Vec<Disk>) -> Self {
        let config = Config { queues: Q as u16, queue_size_max: RING, ..config };
        Self {
            memory: CellMemory::new(GuestAddr(0), vec![0; 0x2_0000].leak()),
            device: make(config),
            legacy: config.interface != Interface::Modern,
            disks,
            rings: std::array::from_fn(|queue| BenchRing::new(layout(queue))),
            line: false,
            messages: Vec::new(),
        }
    }

    pub(crate) fn bring_up(&mut self, features: Features) {
        let legacy = self.legacy;
        self.set(register::STATUS, 1);
        self.set(register::STATUS, 3);
        let accepted = self.offered() & features;
        self.accept(accepted.bits());
        if !legacy {
            self.set(register::STATUS, 11);
            assert_eq!(self.get(register::STATUS), 11, "features accepted");
        }
        for queue in 0..Q as u32 {
            self.set_up_queue(queue, legacy);
        }
        self.set(register::STATUS, if legacy { 7 } else { 15 });
    }

    pub(crate) fn offered(&mut self) -> Features {
        self.set(register::DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.get(register::DEVICE_FEATURES));
        self.set(register::DEVICE_FEATURES_SEL, 0);
        Features::from_bits_retain(high << 32 | u64::from(self.get(register::DEVICE_FEATURES)))
    }

    pub(crate) fn accept(&mut self, features: u64) {
        self.set_all(&virtio::accept(features));
    }

    pub(crate) fn set_up_queue(&mut self, queue: u32, legacy: bool) {
        if !legacy {
            return self.set_up_ring(queue as usize);
        }
        let layout = self.clear_ring(queue as usize);
        self.set(register::QUEUE_SEL, queue);
        self.set(register::QUEUE_SIZE, u32::from(RING));
        self.set(register::GUEST_PAGE_SIZE, 0x1000);
        self.set(register::QUEUE_ALIGN, 0x40);
        self.set(register::QUEUE_PFN, (layout.descriptors / 0x1000) as u32);
    }

    pub(crate) fn config(&mut self, offset: u64, width: Width) -> u64 {
        self.read(D::place(register::CONFIG).0 + offset, width)
    }

    pub(crate) fn header(&self, at: u64, kind: u32, sector: u64) {
        self.put(at, &kind.to_le_bytes());
        self.put(at + 4, &[0; 4]);
        self.put(at + 8, &sector.to_le_bytes());
        self.put(STATUS, &[0xff]);
    }

    /// Sends a request on queue 0, waits, and returns status and used length.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let head = self.send(kind, sector, data);
        self.poll();
        let (back, written) = self.reap(0).expect("the request completes");
        assert_eq!(back, head);
        assert_eq!(self.reap(0), None, "and completes once");
        (self.fetch(STATUS, 1)[0], written)
    }

    /// Makes a request available on queue 0.
    pub(crate) fn send(&mut self, kind: u32, sector: u64, data: &[Piece]) -> u16 {
        self.header(HEADER, kind, sector);
        let mut pieces = vec![(HEADER, 16, 0)];
        pieces.extend_from_slice(data);
        pieces.push((STATUS, 1, WRITE));
        self.offer(0, &pieces)
    }

    /// Sends a discard or write-zeroes of segments (sector, sectors, flags).
    pub(crate) fn ranges(&mut self, kind: u32, segments: &[(u64, u32, u32)]) -> (u8, u32) {
        let bytes: Vec<u8> = segments
            .iter()
            .flat_map(|&(sector, sectors, flags)| {
                let rest = u64::from(sectors) | u64::from(flags) << 32;
                [sector.to_le_bytes(), rest.to_le_bytes()].concat()
            })
            .collect();
        self.put(DATA, &bytes);
        self.request(kind, 0, &[(DATA, bytes.len() as u32, 0)])
    }

    /// What the disk was asked since the last time.
    pub(crate) fn log(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.disks[0].log)
    }
}

/// A modern device over one eager disk with a volatile cache.
pub(crate) fn machine() -> Machine {
    Machine::new(Config::default(), vec![Disk::new(Cache::WriteBack)], modern())
}
