//! Guests that keep every slot of their device full of the largest requests that it takes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{bail, ensure};
use blk_core::bus::Width;
use blk_core::virtio::pci::{common, structure};
use host_std::testing::client::vfio_user::{CONFIG, VfioUser};
use rustix::event::{EventfdFlags, eventfd};

use crate::served::{IMAGE_BYTES, MEMORY_BYTES};

/// Between two looks at the device.
const REST: Duration = Duration::from_micros(500);

pub(crate) trait Guest {
    /// Issues a request in each slot that is free.
    fn fill(&mut self) -> anyhow::Result<()>;

    /// Reads a register, and takes note of what it says.
    fn read_register(&mut self) -> anyhow::Result<()>;

    /// Bytes of requests that have ended.
    fn bytes(&self) -> u64;

    /// Bytes of a request.
    fn request_bytes(&self) -> u64;

    /// Does nothing for a moment but to answer for its memory.
    fn rest(&mut self) -> anyhow::Result<()>;
}

/// A client, and a descriptor that never becomes readable: to wait for.
struct Machine {
    client: VfioUser,
    never: OwnedFd,
}

impl Machine {
    fn new(mut client: VfioUser) -> anyhow::Result<Self> {
        // Memory and bus mastering.
        client.write(CONFIG, 4, Width::Word, 6)?;
        Ok(Self { client, never: eventfd(0, EventfdFlags::CLOEXEC)? })
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        self.client.wait(self.never.as_fd(), REST)?;
        Ok(())
    }
}

/// The drive at the first port of an AHCI controller, by queued commands.
pub(crate) struct Ahci {
    machine: Machine,
    /// Slots that have a command.
    busy: u32,
    bytes: u64,
}

const ABAR: u32 = 5;
// Registers of the controller and of the first port (AHCI 1.3.1, 3.1 and 3.3).
const GHC: u64 = 0x04;
const CLB: u64 = 0x100;
const FB: u64 = 0x108;
const IS: u64 = 0x110;
const CMD: u64 = 0x118;
const TFD: u64 = 0x120;
const SERR: u64 = 0x130;
const SACT: u64 = 0x134;
const CI: u64 = 0x138;
/// TFES, HBFS, HBDS, IFS in PxIS.
const FATAL: u32 = 0xf << 27;

const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLES: u64 = 0x800;
const DATA: u64 = 0x10_0000;
/// Most bytes of a command: 65,536 sectors (ACS-3, READ FPDMA QUEUED: a count of 0), and of a piece of it (AHCI 1.3.1, 4.2.3.3).
const COMMAND_BYTES: u64 = 32 << 20;
const PIECE_BYTES: u64 = 4 << 20;

impl Ahci {
    pub(crate) fn new(client: VfioUser) -> anyhow::Result<Self> {
        let mut machine = Machine::new(client)?;
        let client = &mut machine.client;
        // AE.
        for (register, value) in [(GHC, 0x8000_0000), (CLB, LIST), (FB, RECEIVED), (SERR, 0xffff_ffff)] {
            client.write(ABAR, register, Width::Dword, value)?;
        }
        client.write(ABAR, CMD, Width::Dword, 0x10)?;
        client.write(ABAR, CMD, Width::Dword, 0x11)?;
        let mut this = Self { machine, busy: 0, bytes: 0 };
        (0..32).for_each(|slot| this.prepare(slot));
        Ok(this)
    }

    /// Writes a slot's command, which stays as it is.
    fn prepare(&mut self, slot: u8) {
        let client = &mut self.machine.client;
        let write = slot % 2 == 1;
        let lba = u64::from(slot) * COMMAND_BYTES % IMAGE_BYTES / 512;
        let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
        let opcode = if write { 0x61 } else { 0x60 };
        let fis = [0x27, 0x80, opcode, 0, l0, l1, l2, 0x40, l3, l4, l5, 0, slot << 3, 0, 0, 0, 0, 0, 0, 0];
        let pieces = COMMAND_BYTES / PIECE_BYTES;
        let table = TABLES + u64::from(slot) * 0x200;
        let mut header = [0; 32];
        header[..4].copy_from_slice(&(5 | u32::from(write) << 6 | (pieces as u32) << 16).to_le_bytes());
        header[8..16].copy_from_slice(&table.to_le_bytes());
        client.put(LIST + u64::from(slot) * 32, &header);
        client.put(table, &fis);
        for piece in 0..pieces {
            let mut region = [0; 16];
            region[..8].copy_from_slice(&DATA.to_le_bytes());
            region[12..].copy_from_slice(&(PIECE_BYTES as u32 - 1).to_le_bytes());
            client.put(table + 0x80 + piece * 16, &region);
        }
    }
}

impl Guest for Ahci {
    fn fill(&mut self) -> anyhow::Result<()> {
        let free = u64::from(!self.busy);
        if free != 0 {
            self.machine.client.post(ABAR, SACT, Width::Dword, free)?;
            self.machine.client.post(ABAR, CI, Width::Dword, free)?;
            self.busy = u32::MAX;
        }
        Ok(())
    }

    fn read_register(&mut self) -> anyhow::Result<()> {
        let active = self.machine.client.read(ABAR, SACT, Width::Dword)? as u32;
        let ended = self.busy & !active;
        if ended != 0 {
            self.bytes += u64::from(ended.count_ones()) * COMMAND_BYTES;
            self.busy &= active;
            let client = &mut self.machine.client;
            let pending = client.read(ABAR, IS, Width::Dword)?;
            client.write(ABAR, IS, Width::Dword, pending)?;
            if pending as u32 & FATAL != 0 {
                bail!("a command failed: task file {:#x}", client.read(ABAR, TFD, Width::Dword)?);
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn request_bytes(&self) -> u64 {
        COMMAND_BYTES
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        self.machine.rest()
    }
}

/// A virtio-blk function, by its first queue.
pub(crate) struct VirtioBlk {
    machine: Machine,
    /// Bytes of each request.
    request_bytes: u64,
    /// Chains made available, and chains that have come back.
    available: u16,
    used: u16,
    ended: u64,
}

const BAR: u32 = 0;
/// Entries of the queue. Each request takes one, with an indirect table.
const ENTRIES: u16 = 128;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Header and status byte of each request, and its table.
const HEADERS: u64 = 0x4000;
const HEADER_BYTES: u64 = 32;
const TABLES_AT: u64 = 0x8000;
const TABLE_BYTES: u64 = 0x1000;
const DATA_AT: u64 = TABLES_AT + TABLE_BYTES * ENTRIES as u64;
// Fields of the device's configuration (VIRTIO 1.3, 5.2.4).
const SIZE_MAX: u64 = structure::DEVICE + 8;
const SEG_MAX: u64 = structure::DEVICE + 12;
/// SIZE_MAX, SEG_MAX, INDIRECT_DESC; VERSION_1, of the upper half.
const FEATURES: [u64; 2] = [1 << 1 | 1 << 2 | 1 << 28, 1];
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

impl VirtioBlk {
    pub(crate) fn new(client: VfioUser) -> anyhow::Result<Self> {
        let mut machine = Machine::new(client)?;
        let client = &mut machine.client;
        let mut set = |register, width, value| client.write(BAR, structure::COMMON + register, width, value);
        // Reset, ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK (VIRTIO 1.3, 3.1.1).
        for status in [0, 1, 3] {
            set(common::DEVICE_STATUS, Width::Byte, status)?;
        }
        for (half, features) in (0..).zip(FEATURES) {
            set(common::DRIVER_FEATURE_SELECT, Width::Dword, half)?;
            set(common::DRIVER_FEATURE, Width::Dword, features)?;
        }
        set(common::DEVICE_STATUS, Width::Byte, 0xb)?;
        set(common::QUEUE_SIZE, Width::Word, ENTRIES.into())?;
        let parts = [
            (common::QUEUE_DESC, DESCRIPTORS),
            (common::QUEUE_DRIVER, AVAILABLE),
            (common::QUEUE_DEVICE, USED),
        ];
        for (register, address) in parts {
            set(register, Width::Dword, address)?;
            set(register + 4, Width::Dword, 0)?;
        }
        set(common::QUEUE_ENABLE, Width::Word, 1)?;
        set(common::DEVICE_STATUS, Width::Byte, 0xf)?;
        let segment = client.read(BAR, SIZE_MAX, Width::Dword)?;
        let segments = client.read(BAR, SEG_MAX, Width::Dword)?;
        ensure!(DATA_AT + segment <= MEMORY_BYTES as u64, "segments of {segment} bytes need more memory");
        let request_bytes = segment * segments;
        ensure!(request_bytes <= IMAGE_BYTES, "requests of {request_bytes} bytes need a larger image");
        for entry in 0..ENTRIES {
            prepare(client, entry, segment as u32, segments as u16);
        }
        Ok(Self { machine, request_bytes, available: 0, used: 0, ended: 0 })
    }
}

/// Writes an entry's request, which stays as it is.
fn prepare(client: &mut VfioUser, entry: u16, segment: u32, segments: u16) {
    let write = entry % 2 == 1;
    let header = HEADERS + u64::from(entry) * HEADER_BYTES;
    client.put(header, &[u8::from(write), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let table = TABLES_AT + u64::from(entry) * TABLE_BYTES;
    let data = if write { NEXT } else { NEXT | WRITE };
    client.put(table, &descriptor(header, 16, NEXT, 1));
    for at in 1..=segments {
        client.put(table + u64::from(at) * 16, &descriptor(DATA_AT, segment, data, at + 1));
    }
    let status = segments + 1;
    client.put(table + u64::from(status) * 16, &descriptor(header + 16, 1, WRITE, 0));
    let whole = descriptor(table, u32::from(status + 1) * 16, INDIRECT, 0);
    client.put(DESCRIPTORS + u64::from(entry) * 16, &whole);
    client.put(AVAILABLE + 4 + u64::from(entry) * 2, &entry.to_le_bytes());
}

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

impl Guest for VirtioBlk {
    /// Entries are issued again as they come back.
    fn fill(&mut self) -> anyhow::Result<()> {
        let client = &mut self.machine.client;
        let index = client.take(USED + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        let before = self.available;
        if before == 0 && self.ended == 0 {
            self.available = ENTRIES;
        }
        while self.used != index {
            let at = USED + 4 + u64::from(self.used % ENTRIES) * 8;
            let entry = u16::from_le_bytes([client.take(at, 1)[0], 0]);
            let status = client.take(HEADERS + u64::from(entry) * HEADER_BYTES + 16, 1)[0];
            ensure!(status == 0, "a request failed: status {status}");
            client.put(AVAILABLE + 4 + u64::from(self.available % ENTRIES) * 2, &entry.to_le_bytes());
            self.available = self.available.wrapping_add(1);
            self.used = self.used.wrapping_add(1);
            self.ended += 1;
        }
        if self.available != before {
            client.put(AVAILABLE + 2, &self.available.to_le_bytes());
            client.post(BAR, structure::NOTIFY, Width::Word, 0)?;
        }
        Ok(())
    }

    fn read_register(&mut self) -> anyhow::Result<()> {
        let register = structure::COMMON + common::DEVICE_STATUS;
        let status = self.machine.client.read(BAR, register, Width::Byte)?;
        ensure!(status == 0xf, "the device is broken: status {status:#x}");
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.ended * self.request_bytes
    }

    fn request_bytes(&self) -> u64 {
        self.request_bytes
    }

    fn rest(&mut self) -> anyhow::Result<()> {
        self.machine.rest()
    }
}
