//! Accesses of a register as a whole do what the general way does, on random programs.

use std::vec::Vec;

use blk_core::bus::{Device as _, IrqChange, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory as _};
use blk_core::ram::{Ram, RamDisk};
use blk_core::units::GuestAddr;
use proptest::prelude::*;

use super::registers::{host, port};
use super::{Hba, PORTS_AT};
use crate::DriveConfig;

const ABAR: Region = Region::Bar(5);
const TABLES: u64 = 0x1000;
const DATA: u64 = 0x3000;

/// An access or a poll.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read(u64),
    Write(u64, u32),
    /// A command in slot 0 to 7: opcode, and whether its data is in several pieces.
    Command(u8, u8, bool),
    Poll,
}

fn register() -> impl Strategy<Value = u64> {
    let of_port = [port::IS, port::IE, port::CMD, port::TFD, port::SIG, port::SSTS, port::SCTL, port::SERR];
    let others = [port::SACT, port::CI, 0x3c, 0x7c];
    let of_ports = (0..3_u64, proptest::sample::select([&of_port[..], &others].concat()))
        .prop_map(|(n, at)| PORTS_AT + 0x80 * n + at);
    let of_host =
        proptest::sample::select(std::vec![host::CAP, host::GHC, host::IS, host::PI, host::VS, 0x24]);
    prop_oneof![4 => of_ports, 1 => of_host]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(2), Just(0x10), Just(0x11), Just(u32::MAX), any::<u32>()]
}

fn step() -> impl Strategy<Value = Step> {
    // Queued; DMA EXT; FLUSH CACHE EXT; IDENTIFY DEVICE; READ LOG EXT; none.
    let opcodes = std::vec![0x60, 0x60, 0x61, 0x61, 0x25, 0x35, 0xea, 0xec, 0x2f, 0xff];
    prop_oneof![
        2 => register().prop_map(Step::Read),
        2 => (register(), value()).prop_map(|(offset, value)| Step::Write(offset, value)),
        5 => (proptest::sample::select(opcodes), 0..8_u8, any::<bool>())
            .prop_map(|(opcode, slot, pieces)| Step::Command(opcode, slot, pieces)),
        2 => Just(Step::Poll),
    ]
}

/// An HBA all of whose registers are accessed as a whole, or in the general way.
struct Rig<'a> {
    hba: Hba<2>,
    general: bool,
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 32>; 2],
}

impl Rig<'_> {
    fn write(&mut self, offset: u64, value: u32) -> IrqChange {
        let Self { hba, memory, disks, .. } = self;
        if self.general {
            hba.write_lanes(offset, Width::Dword, value.into(), memory, &mut disks[..])
        } else {
            hba.write(ABAR, offset, Width::Dword, value.into(), memory, &mut disks[..]).irq
        }
    }

    fn read(&mut self, offset: u64) -> u64 {
        let Self { hba, memory, disks, .. } = self;
        if self.general {
            hba.read_lanes(offset, Width::Dword)
        } else {
            hba.read(ABAR, offset, Width::Dword, memory, &mut disks[..]).value
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GuestAddr(at), bytes).unwrap();
    }

    fn command(&mut self, opcode: u8, slot: u8, pieces: bool) -> IrqChange {
        let (table, lba) = (TABLES + 0x100 * u64::from(slot), 2 * slot);
        let queued = opcode & 0xfe == 0x60;
        let (features, count) = if queued { (2, slot << 3) } else { (0, 2) };
        let fis = [0x27, 0x80, opcode, features, lba, 0, 0, 0x40, 0, 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0];
        let regions: &[u32] = if pieces { &[100, 600, 324] } else { &[1024] };
        self.put(32 * u64::from(slot), &(5 | (regions.len() as u32) << 16).to_le_bytes());
        self.put(32 * u64::from(slot) + 8, &table.to_le_bytes());
        self.put(table, &fis);
        let mut data = DATA + 0x400 * u64::from(slot);
        for (at, bytes) in (table + 0x80..).step_by(16).zip(regions) {
            self.put(at, &data.to_le_bytes());
            self.put(at + 12, &(bytes - 1).to_le_bytes());
            data += u64::from(*bytes);
        }
        let issue = if queued { self.write(PORTS_AT + port::SACT, 1 << slot) } else { IrqChange::NONE };
        issue.then(self.write(PORTS_AT + port::CI, 1 << slot))
    }

    fn run(&mut self, step: Step) -> (u64, IrqChange) {
        match step {
            Step::Read(offset) => (self.read(offset), IrqChange::NONE),
            Step::Write(offset, value) => (0, self.write(offset, value)),
            Step::Command(opcode, slot, pieces) => (0, self.command(opcode, slot, pieces)),
            Step::Poll => {
                let progress = self.hba.poll(&self.memory, &mut self.disks[..]);
                (progress.again.into(), progress.irq)
            }
        }
    }

    fn start(&mut self) {
        let at = PORTS_AT;
        for (offset, value) in [
            (at + port::FB, 0x400),
            (at + port::CMD, 0x10),
            (at + port::SERR, u32::MAX),
            (at + port::IE, u32::MAX),
            (host::GHC, 2),
            (at + port::CMD, 0x11),
        ] {
            self.write(offset, value);
            self.run(Step::Poll);
        }
    }
}

/// Whether IS and the messages tell of every port, although most writes look at one alone.
fn is_collected(hba: &Hba<2>) -> bool {
    hba.ports.iter().zip(0..).all(|(port, n)| {
        let interrupts = port.enabled_interrupts();
        let announced = if hba.enabled && hba.message_per_port { interrupts } else { 0 };
        (interrupts == 0 || hba.pending >> n & 1 == 1) && port.announced == announced
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whole_registers_are_accessed_as_parts_are(
        messages in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut parts = [(); 2].map(|()| {
            let ram = (0..0x6000_u32).map(|n| if u64::from(n) < DATA { 0 } else { (n * 7) as u8 }).collect::<Vec<_>>();
            let image = (0..64 * 512_u32).map(|n| (n * 3 + n / 512) as u8).collect::<Vec<_>>();
            (ram, image, std::vec![0_u8; 64 * 512], std::vec![0_u8; 32 * 512], std::vec![0_u8; 32 * 512])
        });
        let rigs = parts.iter_mut().zip([false, true]).map(|((ram, image, other, staging, staging_1), general)| {
            let mut hba = Hba::new([Some(DriveConfig::new("DISK", "1")), Some(DriveConfig::new("DISK", "2"))]);
            hba.set_message_per_port(messages);
            let memory = CellMemory::new(GuestAddr(0), ram);
            let disks = [(image, staging), (other, staging_1)]
                .map(|(image, staging)| RamDisk::new(Ram::new(image), staging));
            let mut rig = Rig { hba, general, memory, disks };
            rig.start();
            rig
        });
        let [mut whole, mut general]: [Rig<'_>; 2] = rigs.collect::<Vec<_>>().try_into().ok().unwrap();
        for step in steps {
            prop_assert_eq!(whole.run(step), general.run(step), "{:?}", step);
            prop_assert_eq!(&whole.hba, &general.hba, "{:?}", step);
            prop_assert!(is_collected(&whole.hba), "{:?}", step);
        }
        prop_assert!(parts[0] == parts[1]);
    }
}
