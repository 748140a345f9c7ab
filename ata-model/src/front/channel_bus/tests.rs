//! The short ways through the Data register do what the long one does, on random programs.

use std::vec::Vec;

use blk_core::bus::{Access, Device as _, IrqChange, Region, Width, WriteStatus};
use blk_core::memory::CellMemory;
use blk_core::ram::{Ram, RamDisk};
use blk_core::units::GuestAddr;
use proptest::prelude::*;

use super::{Channel, DATA};
use crate::DriveConfig;

/// An access or a poll.
#[derive(Clone, Debug)]
enum Step {
    /// A write to a register of the command block or to Device Control.
    Register(u64, u8),
    /// Count and LBA, then the command.
    Command(u8, u8),
    Read(Width),
    Write(Width, u64),
    ReadString(Width, usize),
    WriteString(Width, Vec<u8>),
    Status,
    Poll,
    Reset,
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        4 => Just(Width::Dword),
        4 => Just(Width::Word),
        1 => Just(Width::Byte),
        1 => Just(Width::Qword)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // SECTOR(S), MULTIPLE and their EXT forms, IDENTIFY DEVICE, SMART, FLUSH CACHE, DMA, an opcode that is none.
    let opcodes = [0x20, 0x24, 0x30, 0x34, 0xc4, 0xc5, 0xec, 0xb0, 0xe7, 0xc8, 0xff];
    prop_oneof![
        1 => (1..9_u64, any::<u8>()).prop_map(|(offset, value)| Step::Register(offset, value)),
        4 => (proptest::sample::select(opcodes.to_vec()), 1..6_u8).prop_map(|(opcode, n)| Step::Command(opcode, n)),
        2 => width().prop_map(Step::Read),
        2 => (width(), any::<u64>()).prop_map(|(width, value)| Step::Write(width, value)),
        4 => (width(), 0..2100_usize).prop_map(|(width, bytes)| Step::ReadString(width, bytes)),
        4 => (width(), proptest::collection::vec(any::<u8>(), 0..2100))
            .prop_map(|(width, bytes)| Step::WriteString(width, bytes)),
        1 => Just(Step::Status),
        4 => Just(Step::Poll),
        1 => Just(Step::Reset),
    ]
}

type Disks<'a> = [RamDisk<'a, 1>; 1];

/// A channel by whose short or long ways all goes.
struct Rig<'a> {
    channel: Channel,
    long: bool,
    memory: &'a CellMemory<'a>,
    disks: Disks<'a>,
}

impl Rig<'_> {
    fn read(&mut self, width: Width) -> Access<u64> {
        let Self { channel, memory, disks, .. } = self;
        if self.long {
            channel.read_any(DATA, 0, width, *memory, &mut disks[..])
        } else {
            channel.read(DATA, 0, width, *memory, &mut disks[..])
        }
    }

    fn write(&mut self, register: (Region, u64, Width), value: u64) -> Access<WriteStatus> {
        let (region, offset, width) = register;
        let Self { channel, memory, disks, .. } = self;
        if self.long {
            channel.write_any(region, offset, width, value, *memory, &mut disks[..])
        } else {
            channel.write(region, offset, width, value, *memory, &mut disks[..])
        }
    }

    /// Returns all that a machine sees: bytes that were read, how many units, interrupt changes.
    fn run(&mut self, step: &Step) -> (Vec<u8>, usize, IrqChange) {
        let byte = |offset| (Region::Bar(0), offset, Width::Byte);
        match *step {
            Step::Register(8, value) => {
                let irq = self.write((Region::Bar(1), 2, Width::Byte), value.into()).irq;
                (Vec::new(), 0, irq)
            }
            // A command would be an arbitrary one.
            Step::Register(7, _) => (Vec::new(), 0, IrqChange::NONE),
            Step::Register(offset, value) => (Vec::new(), 0, self.write(byte(offset), value.into()).irq),
            Step::Command(opcode, count) => {
                let registers = [(1, 0xd0), (2, count), (3, 0), (4, 0), (5, 0), (6, 0xe0), (7, opcode)];
                let irqs = registers.map(|(offset, value)| self.write(byte(offset), value.into()).irq);
                (Vec::new(), 0, irqs.into_iter().fold(IrqChange::NONE, IrqChange::then))
            }
            Step::Read(width) => {
                let access = self.read(width);
                (access.value.to_le_bytes().to_vec(), 1, access.irq)
            }
            Step::Write(width, value) => (Vec::new(), 1, self.write((DATA, 0, width), value).irq),
            Step::ReadString(width, bytes) => self.read_string(width, bytes),
            Step::WriteString(width, ref bytes) => self.write_string(width, bytes),
            Step::Status => {
                let access =
                    self.channel.read(Region::Bar(0), 7, Width::Byte, self.memory, &mut self.disks[..]);
                (access.value.to_le_bytes().to_vec(), 1, access.irq)
            }
            Step::Poll => {
                let progress = self.channel.poll(self.memory, &mut self.disks[..]);
                (Vec::new(), progress.again.into(), progress.irq)
            }
            Step::Reset => {
                let progress = self.channel.reset(self.memory, &mut self.disks[..]);
                (Vec::new(), progress.again.into(), progress.irq)
            }
        }
    }

    fn read_string(&mut self, width: Width, bytes: usize) -> (Vec<u8>, usize, IrqChange) {
        let mut into = std::vec![0xee; bytes];
        if !self.long {
            let Self { channel, memory, disks, .. } = self;
            let access = channel.read_string(DATA, 0, width, &mut into, *memory, &mut disks[..]);
            return (into, access.value, access.irq);
        }
        let (mut units, mut irq) = (0, IrqChange::NONE);
        for unit in into.chunks_exact_mut(width.bytes().into()) {
            let access = self.read(width);
            unit.copy_from_slice(&access.value.to_le_bytes()[..unit.len()]);
            (units, irq) = (units + 1, irq.then(access.irq));
        }
        (into, units, irq)
    }

    fn write_string(&mut self, width: Width, from: &[u8]) -> (Vec<u8>, usize, IrqChange) {
        if !self.long {
            let Self { channel, memory, disks, .. } = self;
            let access = channel.write_string(DATA, 0, width, from, *memory, &mut disks[..]);
            assert_eq!(access.value.status, WriteStatus::Done);
            return (Vec::new(), access.value.units, access.irq);
        }
        let (mut units, mut irq) = (0, IrqChange::NONE);
        for unit in from.chunks_exact(width.bytes().into()) {
            let mut value = [0; 8];
            value[..unit.len()].copy_from_slice(unit);
            let access = self.write((DATA, 0, width), u64::from_le_bytes(value));
            (units, irq) = (units + 1, irq.then(access.irq));
        }
        (Vec::new(), units, irq)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn short_ways_do_what_the_long_one_does(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut ram, image) = ([0; 512], (0..64 * 512).map(|n: u32| (n * 7 + n / 512) as u8).collect::<Vec<_>>());
        let (mut images, mut stagings) = ([image.clone(), image], [[0; 4096]; 2]);
        let memory = CellMemory::new(GuestAddr(0), &mut ram);
        let channel = Channel::with_bus_master([Some(DriveConfig::new("DISK", "1")), None]);
        let rigs = images.iter_mut().zip(&mut stagings).zip([false, true]).map(|((image, staging), long)| {
            let disks = [RamDisk::new(Ram::new(image), staging)];
            let mut rig = Rig { channel: channel.clone(), long, memory: &memory, disks };
            // SET MULTIPLE MODE, four blocks.
            rig.run(&Step::Command(0xc6, 4));
            rig
        });
        let [mut short, mut long]: [Rig<'_>; 2] = rigs.collect::<Vec<_>>().try_into().ok().unwrap();
        for step in &steps {
            prop_assert_eq!(short.run(step), long.run(step), "{:?}", step);
            prop_assert_eq!(&short.channel, &long.channel, "{:?}", step);
        }
        prop_assert_eq!(&images[0], &images[1]);
        prop_assert_eq!(stagings[0], stagings[1]);
    }
}
