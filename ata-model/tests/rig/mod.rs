//! A machine with an IDE controller, and disks that do what a test says.

#![allow(dead_code, reason = "each test uses some of it")]

pub mod ahci;

use std::collections::VecDeque;

use ata_model::wire::Status;
use ata_model::{Channel, DriveConfig, PciIde, PciIdeChip, PciIdeMode};
use blk_core::bus::{Device, IrqChange, Progress, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::op::{Op, Segment};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::ram::plain_info;
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, Storage, Submission};
use blk_core::units::{GuestAddr, Lba, Tag};

pub const SECTORS: u64 = 4096;
/// Bytes of each slot's staging buffer.
const STAGING_BYTES: usize = 8192;
pub const MEMORY_BYTES: usize = 1 << 20;

/// A disk in memory whose completions can be held back, refused and failed, and which notes every operation.
pub struct TestDisk {
    pub info: Info,
    pub bytes: Vec<u8>,
    pub log: Vec<Op>,
    /// Completions wait in `held` until [`Self::release`].
    pub hold: bool,
    pub busy: bool,
    /// The next operation fails with this.
    pub fail: Option<IoError>,
    held: VecDeque<(Tag, Op, Vec<Segment>)>,
    done: VecDeque<Completion>,
    staging: Vec<u8>,
}

impl TestDisk {
    pub fn new(cache: Cache) -> Self {
        let mut info = plain_info(SECTORS * 512, cache);
        info.staging_bytes = STAGING_BYTES as u32;
        info.discard = true;
        Self {
            info,
            bytes: vec![0; (SECTORS * 512) as usize],
            log: Vec::new(),
            hold: false,
            busy: false,
            fail: None,
            held: VecDeque::new(),
            done: VecDeque::new(),
            staging: vec![0; 32 * STAGING_BYTES],
        }
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    pub fn release(&mut self, memory: &impl GuestMemory) {
        self.hold = false;
        while let Some((tag, op, segments)) = self.held.pop_front() {
            self.run(memory, tag, op, &segments);
        }
    }

    /// Lets the `n`th of the operations held go.
    pub fn release_one(&mut self, memory: &(impl GuestMemory + ?Sized), n: usize) {
        let (tag, op, segments) = self.held.remove(n).unwrap();
        self.run(memory, tag, op, &segments);
    }

    pub fn sector(&self, lba: u64) -> &[u8] {
        &self.bytes[lba as usize * 512..][..512]
    }

    fn run(&mut self, memory: &(impl GuestMemory + ?Sized), tag: Tag, op: Op, segments: &[Segment]) {
        let result = self.fail.take().map_or(Ok(()), Err);
        if result.is_ok()
            && let Some(extent) = op.extent()
        {
            let range = extent.start.0 as usize * 512..extent.end().unwrap() as usize * 512;
            let mut disk = &mut self.bytes[range];
            if let Op::Discard { .. } = op {
                disk.fill(0);
            }
            for segment in segments {
                let (piece, rest) = disk.split_at_mut(segment.len() as usize);
                disk = rest;
                match (*segment, op) {
                    (Segment::Guest { addr, .. }, Op::Read { .. }) => memory.write(addr, piece).unwrap(),
                    (Segment::Guest { addr, .. }, _) => memory.read(addr, piece).unwrap(),
                    (Segment::Staging { offset, len }, op) => {
                        let at = usize::from(tag.slot) * STAGING_BYTES + offset as usize;
                        let staging = &mut self.staging[at..at + len as usize];
                        match op {
                            Op::Read { .. } => staging.copy_from_slice(piece),
                            _ => piece.copy_from_slice(staging),
                        }
                    }
                }
            }
        }
        self.done.push_back(Completion { tag, result });
    }
}

impl<M: GuestMemory + ?Sized> Storage<M> for TestDisk {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        if self.busy {
            return Err(Busy);
        }
        let bytes: u64 = segments.iter().map(|s| u64::from(s.len())).sum();
        let data = matches!(op, Op::Read { .. } | Op::Write { .. });
        assert_eq!(bytes, if data { op.extent().unwrap().bytes().unwrap() } else { 0 });
        assert!(op.extent().is_none_or(|extent| extent.fits(self.info.sectors)), "{op:?}");
        assert!(segments.len() <= usize::from(self.info.segments_max));
        self.log.push(op);
        self.held.push_back((tag, op, segments.to_vec()));
        if !self.hold {
            self.release_one(memory, self.held.len() - 1);
        }
        Ok(Submission::Pending)
    }

    fn poll(&mut self, _memory: &M) -> Option<Completion> {
        self.done.pop_front()
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        let used = self.held.iter().any(|(tag, _, segments)| {
            tag.slot == slot && segments.iter().any(|segment| matches!(segment, Segment::Staging { .. }))
        });
        let at = usize::from(slot) * STAGING_BYTES;
        if used || slot > 31 { &mut [] } else { &mut self.staging[at..][..self.info.staging_bytes as usize] }
    }
}

pub type Memory = CellMemory<'static>;

pub fn memory() -> Memory {
    CellMemory::new(GuestAddr(0), Box::leak(vec![0; MEMORY_BYTES].into_boxed_slice()))
}

pub fn drive(n: u8) -> Option<DriveConfig> {
    Some(DriveConfig::new(&format!("DISK {n}"), &format!("SERIAL{n}")))
}

/// The PCI command register, and its bits.
pub const COMMAND: u64 = 0x04;
pub const IO: u64 = 1;
pub const MEMORY: u64 = 2;
pub const BUS_MASTER: u64 = 4;

/// A device on the bus of a small machine.
pub struct Rig<D> {
    pub device: D,
    pub memory: Memory,
    pub disks: Vec<TestDisk>,
    pub irq: u32,
    /// How often line 0 went up.
    pub edges: u32,
    /// How often line 1 did: messages.
    pub messages: u32,
    /// Which message each was: with one for each port, the port.
    pub port_messages: Vec<u8>,
}

pub type Ide = Rig<PciFunction<PciIde, 1>>;

/// A PCI IDE controller.
pub fn ide(drives: [Option<DriveConfig>; 4], cache: Cache) -> Ide {
    Rig::new(
        PciFunction::new(PciIde::new(drives, PciIdeChip::Piix3, PciIdeMode::Native), MsixOwner::Function),
        cache,
    )
}

/// The same with one drive.
pub fn one_drive(cache: Cache) -> Ide {
    ide([drive(0), None, None, None], cache)
}

/// A channel without a bus master.
pub fn isa_channel(drives: [Option<DriveConfig>; 2]) -> Rig<Channel> {
    Rig::new(Channel::new(drives), Cache::WriteBack)
}

/// A command, 48-bit wide; a 28-bit one uses the low parts.
#[derive(Clone, Copy, Default)]
pub struct Cmd {
    pub opcode: u8,
    pub features: u16,
    pub count: u16,
    pub lba: u64,
    /// Device register; 0 stands for LBA, device 0.
    pub device: u8,
}

pub fn cmd(opcode: u8) -> Cmd {
    Cmd { opcode, device: 0x40, ..Cmd::default() }
}

impl Cmd {
    pub fn lba(self, lba: u64) -> Self {
        Self { lba, ..self }
    }

    pub fn count(self, count: u16) -> Self {
        Self { count, ..self }
    }

    pub fn features(self, features: u16) -> Self {
        Self { features, ..self }
    }

    pub fn device(self, device: u8) -> Self {
        Self { device, ..self }
    }
}

pub const READY: u8 = 0x50;
pub const DRQ: u8 = 0x58;
pub const ERROR: u8 = 0x51;

impl<D: Device<Memory, [TestDisk]>> Rig<D> {
    pub fn new(device: D, cache: Cache) -> Self {
        let disks = (0..4).map(|_| TestDisk::new(cache)).collect();
        let mut rig = Self {
            device,
            memory: memory(),
            disks,
            irq: 0,
            edges: 0,
            messages: 0,
            port_messages: Vec::new(),
        };
        rig.set_config(COMMAND, Width::Word, IO | MEMORY | BUS_MASTER);
        rig
    }

    pub fn config(&mut self, offset: u64, width: Width) -> u64 {
        let access = self.device.read(Region::Config, offset, width, &self.memory, &mut self.disks[..]);
        self.wire(access.irq);
        access.value
    }

    pub fn set_config(&mut self, offset: u64, width: Width, value: u64) {
        let access =
            self.device.write(Region::Config, offset, width, value, &self.memory, &mut self.disks[..]);
        self.wire(access.irq);
    }

    /// Where the configuration space has the capability `id`.
    pub fn capability(&mut self, id: u8) -> u64 {
        let mut at = self.config(0x34, Width::Byte);
        while at != 0 && self.config(at, Width::Byte) != id.into() {
            at = self.config(at + 1, Width::Byte);
        }
        assert_ne!(at, 0, "capability {id:#x}");
        at
    }

    /// Lets the device send messages.
    pub fn enable_msi(&mut self) {
        let msi = self.capability(0x05);
        self.set_config(msi + 4, Width::Dword, 0xfee0_0000);
        self.set_config(msi + 12, Width::Word, 0x41);
        self.set_config(msi + 2, Width::Word, 1);
    }

    /// Lets the device send messages of all `count` entries of its MSI-X table, which is at the start of BAR 0.
    pub fn enable_msix(&mut self, count: u64) {
        let msix = self.capability(0x11);
        for entry in (0..count).map(|entry| entry * 16) {
            self.write(0, entry, Width::Dword, 0xfee0_0000);
            self.write(0, entry + 8, Width::Dword, 0x40 + entry / 16);
            self.write(0, entry + 12, Width::Dword, 0);
        }
        self.set_config(msix + 2, Width::Word, 1 << 15);
    }

    /// The command register, and what the device then does by itself.
    pub fn permit(&mut self, command: u64) {
        self.set_config(COMMAND, Width::Word, command);
        self.poll();
    }

    fn wire(&mut self, irq: IrqChange) {
        self.edges += u32::from(irq.line(0) == Some(true));
        self.messages += u32::from(irq.line(1) == Some(true));
        self.port_messages.extend((0..31).filter(|port| irq.line(port + 1) == Some(true)));
        self.irq = (self.irq & !irq.changed) | irq.level;
    }

    pub fn write(&mut self, bar: u8, offset: u64, width: Width, value: u64) {
        let access =
            self.device.write(Region::Bar(bar), offset, width, value, &self.memory, &mut self.disks[..]);
        self.wire(access.irq);
    }

    pub fn read(&mut self, bar: u8, offset: u64, width: Width) -> u64 {
        let access = self.device.read(Region::Bar(bar), offset, width, &self.memory, &mut self.disks[..]);
        self.wire(access.irq);
        access.value
    }

    pub fn out(&mut self, bar: u8, offset: u64, value: u8) {
        self.write(bar, offset, Width::Byte, value.into());
    }

    pub fn input(&mut self, bar: u8, offset: u64) -> u8 {
        self.read(bar, offset, Width::Byte) as u8
    }

    pub fn poll(&mut self) -> Progress {
        loop {
            let progress = self.device.poll(&self.memory, &mut self.disks[..]);
            self.wire(progress.irq);
            if !progress.again {
                return progress;
            }
        }
    }

    /// A reset of the bus, and what firmware then does at once.
    pub fn hardware_reset(&mut self) -> Progress {
        let progress = self.device.reset(&self.memory, &mut self.disks[..]);
        self.wire(progress.irq);
        self.set_config(COMMAND, Width::Word, IO | MEMORY | BUS_MASTER);
        progress
    }

    pub fn alternate_status(&mut self) -> u8 {
        self.input(1, 2)
    }

    pub fn status(&mut self) -> u8 {
        self.input(0, 7)
    }

    pub fn error(&mut self) -> u8 {
        self.input(0, 1)
    }

    pub fn busy(&mut self) -> bool {
        self.alternate_status() & Status::BSY.bits() != 0
    }

    /// The address registers, as a 48-bit command reports them.
    pub fn lba48(&mut self) -> u64 {
        let mut bytes = [0; 8];
        for offset in 0..3 {
            self.out(1, 2, 0);
            bytes[offset] = self.input(0, 3 + offset as u64);
            self.out(1, 2, 0x80);
            bytes[offset + 3] = self.input(0, 3 + offset as u64);
        }
        self.out(1, 2, 0);
        u64::from_le_bytes(bytes)
    }

    /// Writes a task file and its command, and polls.
    pub fn issue(&mut self, command: Cmd) {
        self.out(0, 6, command.device);
        let lba = command.lba.to_le_bytes();
        for (offset, [current, previous]) in [
            (1, command.features.to_le_bytes()),
            (2, command.count.to_le_bytes()),
            (3, [lba[0], lba[3]]),
            (4, [lba[1], lba[4]]),
            (5, [lba[2], lba[5]]),
        ] {
            self.out(0, offset, previous);
            self.out(0, offset, current);
        }
        self.out(0, 7, command.opcode);
        self.poll();
    }

    /// A command that moves no data: its status, which acknowledges its interrupt.
    pub fn run(&mut self, command: Cmd) -> u8 {
        self.issue(command);
        self.status()
    }

    pub fn read_words(&mut self, bytes: usize) -> Vec<u8> {
        (0..bytes / 2).flat_map(|_| (self.read(0, 0, Width::Word) as u16).to_le_bytes()).collect()
    }

    pub fn write_words(&mut self, bytes: &[u8]) {
        for word in bytes.chunks_exact(2) {
            self.write(0, 0, Width::Word, u16::from_le_bytes([word[0], word[1]]).into());
        }
    }

    /// A PIO read in blocks of `block` bytes; checks that each block is announced.
    pub fn pio_in(&mut self, command: Cmd, block: usize, blocks: usize) -> Vec<u8> {
        self.issue(command);
        let mut data = Vec::new();
        for _ in 0..blocks {
            self.poll();
            assert_eq!(self.irq & 1, 1, "each block is announced");
            assert_eq!(self.status(), DRQ);
            data.extend(self.read_words(block));
        }
        self.poll();
        data
    }

    /// A PIO write in blocks of `block` bytes; returns the final status.
    pub fn pio_out(&mut self, command: Cmd, block: usize, data: &[u8]) -> u8 {
        self.issue(command);
        for piece in data.chunks(block) {
            assert_eq!(self.status(), DRQ);
            self.write_words(piece);
            self.poll();
            assert_eq!(self.irq & 1, 1);
        }
        self.status()
    }

    pub fn identify(&mut self, device: u8) -> Vec<u16> {
        let data = self.pio_in(cmd(0xec).device(device), 512, 1);
        data.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
    }

    /// Writes a PRD table at `table`; the last entry ends it.
    pub fn prds(&mut self, table: u64, regions: &[(u32, u16)]) {
        for (n, &(base, bytes)) in regions.iter().enumerate() {
            let mut prd = [0; 8];
            prd[..4].copy_from_slice(&base.to_le_bytes());
            prd[4..6].copy_from_slice(&bytes.to_le_bytes());
            prd[7] = if n + 1 == regions.len() { 0x80 } else { 0 };
            self.poke(table + n as u64 * 8, &prd);
        }
    }

    pub fn poke(&mut self, addr: u64, bytes: &[u8]) {
        self.memory.write(GuestAddr(addr), bytes).unwrap();
    }

    pub fn peek(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestAddr(addr), &mut bytes).unwrap();
        bytes
    }

    /// Points the bus master at `table`, issues, and sets Start.
    pub fn start_dma(&mut self, command: Cmd, table: u32, to_memory: bool) {
        let direction = if to_memory { 8 } else { 0 };
        self.write(4, 4, Width::Dword, table.into());
        self.out(4, 0, direction);
        self.out(4, 2, 0x66);
        self.issue(command);
        self.out(4, 0, direction | 1);
        self.poll();
    }

    /// Stops the bus master; returns its status as it was before.
    pub fn stop_dma(&mut self) -> u8 {
        let status = self.input(4, 2);
        self.out(4, 0, 0);
        self.out(4, 2, 0x66);
        status & 0x07
    }

    /// A DMA command over the regions given; returns the bus master's status and the drive's.
    pub fn dma(&mut self, command: Cmd, regions: &[(u32, u16)], to_memory: bool) -> (u8, u8) {
        self.prds(0x100, regions);
        self.start_dma(command, 0x100, to_memory);
        let status = self.stop_dma();
        (status, self.status())
    }
}

pub fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n as u8).wrapping_mul(7).wrapping_add(seed).wrapping_add((n >> 8) as u8)).collect()
}

pub fn medium_error(lba: u64) -> IoError {
    IoError { kind: blk_core::storage::IoErrorKind::Medium, lba: Some(Lba(lba)) }
}
