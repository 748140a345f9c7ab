//! A disk that completes when, in which order and how the fuzzer says, and that keeps its medium apart from its cache.

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::{Extent, SECTOR_BYTES, Tag};

use crate::memory::Memory;
use crate::{choices, record};

const SECTOR: usize = SECTOR_BYTES as usize;

/// Bytes of a handle's staging buffers: enough for a DRQ block of 256 sectors.
const STAGING_BYTES: usize = 1 << 17;

/// The contents of a sector that is not one number throughout: torn, or never written by [`stamp`].
pub const MIXED: u64 = u64::MAX;

/// The bytes of a sector that holds `value`.
pub fn stamp(value: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// The bytes of a run of sectors that hold `value`.
pub fn stamps(extent: Extent, value: u64) -> Vec<u8> {
    stamp(value).repeat(usize::try_from(extent.sectors).expect("small"))
}

/// A run on a disk of `sectors`, from the low bits of `at` on, of at most `longest` sectors by its bits from `shift` on.
pub fn extent(at: u8, shift: u8, longest: u64, sectors: u64) -> Extent {
    let start = u64::from(at) % sectors;
    Extent::new(start, (1 + u64::from(at >> shift) % longest).min(sectors - start))
}

/// The value of a sector's bytes, or [`MIXED`].
pub fn value(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
    let first = words.next().unwrap_or(MIXED);
    if words.all(|word| word == first) { first } else { MIXED }
}

record! {
    /// What the disk is.
    pub struct Kind {
        /// Cache, modulo the three there are.
        pub cache: u8,
        /// Native FUA, range operations stable, discard, read-only (one in eight).
        pub flags: u8,
    }
}

impl Kind {
    /// A disk with a write cache.
    pub const WRITE_BACK: Self = Self { cache: 1, flags: 0b100 };

    fn info(self, sectors: u64) -> Info {
        let flag = |bit: u8| self.flags >> bit & 1 != 0;
        let cache = [Cache::WriteThrough, Cache::WriteBack, Cache::Unsafe][usize::from(self.cache % 3)];
        Info {
            sectors,
            logical_block_bytes: SECTOR_BYTES,
            physical_block_bytes: SECTOR_BYTES,
            optimal_io_bytes: 0,
            read_only: self.flags >> 3 & 7 == 7,
            rotational: flag(6),
            cache,
            fua: flag(0),
            range_stable: flag(1),
            discard: flag(2),
            staging_bytes: STAGING_BYTES as u32,
            segments_max: 126,
            transfer_max_bytes: 1 << 20,
        }
    }
}

choices! {
    /// What happens to the disk by itself.
    pub enum Event {
        /// An operation in flight ends.
        Complete {
            /// Which, modulo how many there are.
            which: u8,
            /// Mostly how it ends: see [`Disk::complete`].
            how: u8,
        },
        /// From now on it is busy, or not.
        Busy {
            /// Whether it is.
            on: bool,
        },
        /// From now on operations end by themselves, in order, as they are polled for; or only as told.
        Prompt {
            /// Whether they do.
            on: bool,
        },
    }
}

/// An operation that was accepted and has not been polled.
struct Flying {
    handle: u16,
    tag: Tag,
    op: Op,
    segments: Vec<Segment>,
    /// For a flush: what was polled by the time it was submitted.
    covers: u64,
    /// Its place among all operations.
    number: u64,
}

/// A value that is not on the medium yet.
struct Cached {
    value: u64,
    number: u64,
    /// When its completion was polled.
    polled: Option<u64>,
}

struct Sector {
    medium: u64,
    /// Newer values, oldest first.
    cached: Vec<Cached>,
}

/// The disk behind all handles.
pub struct Disk {
    info: Info,
    bytes: Vec<u8>,
    sectors: Vec<Sector>,
    flying: Vec<Flying>,
    done: VecDeque<(u16, Op, u64, Completion)>,
    busy: bool,
    prompt: bool,
    latched: bool,
    submitted: u64,
    polled: u64,
}

impl Disk {
    /// A disk of zeroes, and handles to it.
    pub fn open(kind: Kind, sectors: u64, handles: u16) -> Vec<Handle> {
        Self::with_info(kind.info(sectors), handles)
    }

    /// A disk of zeroes described by `info`, and handles to it.
    pub fn with_info(info: Info, handles: u16) -> Vec<Handle> {
        let count = usize::try_from(info.sectors).expect("small");
        let disk = Rc::new(RefCell::new(Self {
            info,
            bytes: vec![0; count * SECTOR],
            sectors: (0..count).map(|_| Sector { medium: 0, cached: Vec::new() }).collect(),
            flying: Vec::new(),
            done: VecDeque::new(),
            busy: false,
            prompt: false,
            latched: false,
            submitted: 0,
            polled: 0,
        }));
        let handle = |number| Handle { disk: Rc::clone(&disk), number, info, staging: Staging::default() };
        (0..handles).map(handle).collect()
    }

    /// What it is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Whether a durable operation has failed.
    pub fn is_latched(&self) -> bool {
        self.latched
    }

    /// The operations that were accepted and have not ended, with handle and slot.
    pub fn flying(&self) -> impl Iterator<Item = (u16, Tag, Op)> {
        self.flying.iter().map(|flying| (flying.handle, flying.tag, flying.op))
    }

    /// Whether every operation has ended and was polled for.
    pub fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.done.is_empty()
    }

    /// What the medium holds, sector by sector: what is there after a power cut.
    pub fn medium(&self) -> impl Iterator<Item = u64> {
        self.sectors.iter().map(|sector| sector.medium)
    }

    /// What a read would return.
    pub fn contents(&self) -> impl Iterator<Item = u64> {
        self.bytes.chunks_exact(SECTOR).map(value)
    }

    /// Ends an operation in flight. `how`: of sixteen, 0 fails without an effect, 1 fails although it had one, the rest
    /// succeed, as far as they can.
    fn complete(&mut self, memory: &Memory, staging: &mut Staging, which: u8, how: u8) {
        if self.flying.is_empty() {
            return;
        }
        let flying = self.flying.remove(usize::from(which) % self.flying.len());
        let refused = self.latched && (flying.op.mutates() || flying.op == Op::Flush);
        let result = match how % 16 {
            _ if refused => Err(IoErrorKind::Latched),
            0 => Err([IoErrorKind::Medium, IoErrorKind::NoSpace][usize::from(how >> 4) % 2]),
            1 => self.run(memory, staging, &flying, how).and(Err(IoErrorKind::Medium)),
            _ => self.run(memory, staging, &flying, how),
        };
        let durable = match flying.op {
            Op::Flush | Op::Write { fua: true, .. } => true,
            Op::Write { .. } => self.info.cache == Cache::WriteThrough,
            Op::WriteZeroes { .. } | Op::Discard { .. } => self.info.range_stable,
            Op::Read { .. } => false,
        };
        self.latched |= durable && matches!(result, Err(IoErrorKind::Medium | IoErrorKind::NoSpace));
        let result = result.map_err(IoError::new);
        let completion = Completion { tag: flying.tag, result };
        self.done.push_back((flying.handle, flying.op, flying.number, completion));
    }

    fn run(
        &mut self,
        memory: &Memory,
        staging: &mut Staging,
        flying: &Flying,
        how: u8,
    ) -> Result<(), IoErrorKind> {
        let slot = flying.tag.slot;
        match flying.op {
            Op::Read { extent } => {
                let mut from = &self.bytes[start(extent)..];
                for segment in &flying.segments {
                    let (piece, rest) = from.split_at(segment.len() as usize);
                    match *segment {
                        Segment::Guest { addr, .. } => memory.write(addr, piece).map_err(memory_error)?,
                        Segment::Staging { offset, len } => {
                            staging.piece(slot, offset, len).copy_from_slice(piece);
                        }
                    }
                    from = rest;
                }
            }
            Op::Write { extent, fua } => {
                let mut into = &mut self.bytes[start(extent)..];
                for segment in &flying.segments {
                    let (piece, rest) = into.split_at_mut(segment.len() as usize);
                    match *segment {
                        Segment::Guest { addr, .. } => memory.read(addr, piece).map_err(memory_error)?,
                        Segment::Staging { offset, len } => {
                            piece.copy_from_slice(staging.piece(slot, offset, len));
                        }
                    }
                    into = rest;
                }
                self.changed(extent, flying.number, fua || self.info.cache == Cache::WriteThrough);
            }
            Op::WriteZeroes { extent, .. } => self.zero(extent, flying.number),
            Op::Discard { extent } if how & 0x80 != 0 => self.zero(extent, flying.number),
            Op::Discard { .. } => {}
            Op::Flush => self.flush(flying.covers),
        }
        Ok(())
    }

    fn zero(&mut self, extent: Extent, number: u64) {
        let from = start(extent);
        self.bytes[from..from + bytes(extent)].fill(0);
        self.changed(extent, number, self.info.range_stable);
    }

    fn changed(&mut self, extent: Extent, number: u64, stable: bool) {
        for index in sectors(extent) {
            let value = value(&self.bytes[index * SECTOR..(index + 1) * SECTOR]);
            let sector = &mut self.sectors[index];
            if stable {
                *sector = Sector { medium: value, cached: Vec::new() };
            } else {
                sector.cached.push(Cached { value, number, polled: None });
            }
        }
    }

    /// Exactly what it must: the writes that were polled before the flush was submitted, and what they overwrote.
    fn flush(&mut self, covers: u64) {
        if self.info.cache == Cache::Unsafe {
            return;
        }
        for sector in &mut self.sectors {
            let covered = |cached: &Cached| cached.polled.is_some_and(|polled| polled <= covers);
            if let Some(last) = sector.cached.iter().rposition(covered) {
                sector.medium = sector.cached[last].value;
                sector.cached.drain(..=last);
            }
        }
    }

    /// Whether an operation of this slot uses its staging buffer.
    fn is_staged(&self, handle: u16, slot: u16) -> bool {
        self.flying.iter().any(|flying| {
            let staged = flying.segments.iter().any(|segment| matches!(segment, Segment::Staging { .. }));
            staged && (flying.handle, flying.tag.slot) == (handle, slot)
        })
    }

    fn submit(&mut self, handle: u16, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        if self.busy {
            return Err(Busy);
        }
        let flying = self.flying.iter().map(|flying| (flying.handle, flying.tag.slot));
        let done = self.done.iter().map(|(handle, _, _, completion)| (*handle, completion.tag.slot));
        let taken = flying.chain(done).any(|used| used == (handle, tag.slot));
        assert!(!taken, "{tag:?} has an operation in flight, and now {op:?}");
        self.check(op, segments);
        self.submitted += 1;
        let (covers, number) = (self.polled, self.submitted);
        self.flying.push(Flying { handle, tag, op, segments: segments.to_vec(), covers, number });
        Ok(Submission::Pending)
    }

    /// What the models promise of every operation.
    fn check(&self, op: Op, segments: &[Segment]) {
        let info = &self.info;
        if let Some(extent) = op.extent() {
            assert!(extent.fits(info.sectors), "{op:?} leaves the disk");
            assert_ne!(extent.sectors, 0, "{op:?} is of nothing");
        }
        assert!(!(op.mutates() && info.read_only), "{op:?} on a read-only disk");
        assert!(info.fua || !matches!(op, Op::Write { fua: true, .. }), "FUA where it is not honoured");
        if let Op::Read { extent } | Op::Write { extent, .. } = op {
            assert_eq!(total_bytes(segments), extent.bytes(), "{op:?}");
            assert!(extent.bytes() <= Some(u64::from(info.transfer_max_bytes)), "{op:?} is too long");
            for segment in segments {
                let end = match *segment {
                    Segment::Guest { .. } => 0,
                    Segment::Staging { offset, len } => u64::from(offset) + u64::from(len),
                };
                assert!(!segment.is_empty() && end <= STAGING_BYTES as u64, "{segment:?} of {op:?}");
            }
        } else {
            assert!(segments.is_empty(), "{op:?} moves no data");
        }
    }

    fn poll(&mut self, memory: &Memory, staging: &mut Staging, handle: u16) -> Option<Completion> {
        if self.prompt {
            while !self.flying.is_empty() {
                self.complete(memory, staging, 0, 2);
            }
        }
        let index = self.done.iter().position(|(of, ..)| *of == handle)?;
        let (_, op, number, completion) = self.done.remove(index)?;
        self.polled += 1;
        if let (true, Some(extent)) = (op.mutates(), op.extent()) {
            for sector in &mut self.sectors[sectors(extent)] {
                let own = sector.cached.iter_mut().filter(|cached| cached.number == number);
                own.for_each(|cached| cached.polled = Some(self.polled));
            }
        }
        Some(completion)
    }
}

/// One of the handles to a disk: that of a queue or a drive.
pub struct Handle {
    disk: Rc<RefCell<Disk>>,
    number: u16,
    info: Info,
    staging: Staging,
}

/// One buffer for each slot, as they are used.
#[derive(Default)]
struct Staging(Vec<Vec<u8>>);

impl Staging {
    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let slot = usize::from(slot);
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, Vec::new);
        }
        let buffer = &mut self.0[slot];
        buffer.resize(STAGING_BYTES, 0);
        buffer
    }

    fn piece(&mut self, slot: u16, offset: u32, len: u32) -> &mut [u8] {
        &mut self.buffer(slot)[offset as usize..][..len as usize]
    }
}

impl Handle {
    /// The disk.
    pub fn disk(&self) -> Ref<'_, Disk> {
        self.disk.borrow()
    }

    /// Lets `event` happen.
    pub fn happen(&mut self, memory: &Memory, event: Event) {
        let mut disk = self.disk.borrow_mut();
        match event {
            Event::Complete { which, how } => disk.complete(memory, &mut self.staging, which, how),
            Event::Busy { on } => disk.busy = on,
            Event::Prompt { on } => disk.prompt = on,
        }
    }

    /// Whether nothing that was submitted is still to land.
    pub fn has_landed(&self) -> bool {
        self.disk().flying().count() == 0
    }

    /// Ends what is in flight, and from now on everything as it is submitted.
    pub fn settle(&mut self, memory: &Memory) {
        self.happen(memory, Event::Busy { on: false });
        self.happen(memory, Event::Prompt { on: true });
    }
}

impl Storage<Memory> for Handle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(&mut self, memory: &Memory, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        let _ = memory;
        self.disk.borrow_mut().submit(self.number, tag, op, segments)
    }

    fn poll(&mut self, memory: &Memory) -> Option<Completion> {
        self.disk.borrow_mut().poll(memory, &mut self.staging, self.number)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        if self.disk().is_staged(self.number, slot) { &mut [] } else { self.staging.buffer(slot) }
    }
}

fn memory_error(MemoryError: MemoryError) -> IoErrorKind {
    IoErrorKind::Memory
}

fn start(extent: Extent) -> usize {
    usize::try_from(extent.start.0).expect("checked") * SECTOR
}

fn bytes(extent: Extent) -> usize {
    usize::try_from(extent.sectors).expect("checked") * SECTOR
}

fn sectors(extent: Extent) -> std::ops::Range<usize> {
    start(extent) / SECTOR..(start(extent) + bytes(extent)) / SECTOR
}
