//! AHCI's structures: any command headers, command FISes and PRD tables, on a quiet HBA.

use ata_model::command::{Operation, Row};
use ata_model::drive::DriveConfig;
use ata_model::front::PciAhci;
use blk_core::bus::{Device as _, Quiet as _, Region, Width};
use blk_core::pci::{MsixOwner, PciFunction};

use crate::disk::{Disk, Handle, Kind};
use crate::memory::Memory;
use crate::program::Seed as _;
use crate::record;

const SECTORS: u64 = 64;
const MEMORY_BYTES: u64 = 0x8000;
const ABAR: Region = Region::Bar(5);
/// Where the first table is; the next is 256 bytes further.
const TABLES: u64 = 0x1000;

record! {
    /// Two commands.
    pub struct Input {
        /// The disk.
        pub kind: Kind,
        /// The first dword of each header.
        pub options: [u32; 2],
        /// How far each table is from where it should be.
        pub tables: [u16; 2],
        /// The command FISes.
        pub fises: [[u8; 20]; 2],
        /// PxSACT and PxCI.
        pub active: u8,
        /// PxFB / 256.
        pub received: u8,
    }
}

/// Runs one [`Input`]; the rest of the bytes are the PRD tables, and lie in memory from address 0x2000 on.
pub fn run(data: &[u8]) {
    let mut source = arbitrary::Unstructured::new(data);
    let Ok(input) = source.arbitrary::<Input>() else { return };
    let rest = source.take_rest();
    let memory = Memory::new(MEMORY_BYTES as usize);
    memory.unguard();
    for (slot, ((options, table), fis)) in (0..).zip(input.options.iter().zip(input.tables).zip(&input.fises))
    {
        let at = TABLES + slot * 0x100;
        memory.put(slot * 32, &options.to_le_bytes());
        memory.put(slot * 32 + 8, &(at + u64::from(table)).to_le_bytes());
        memory.put(at, fis);
        memory.put(at + 0x80, rest);
    }
    memory.put(0x2000, rest);
    let mut disks = Disk::open(input.kind, SECTORS, 1);
    disks[0].settle(&memory);
    let device = PciAhci::new([Some(DriveConfig::new("FUZZED DISK", "1"))]);
    let mut function = PciFunction::new(device, MsixOwner::Function);
    let _ = function.write(Region::Config, 0x04, Width::Word, 6, &memory, &mut disks);
    let mut bus = Bus { function: &mut function, memory: &memory, disks: &mut disks };
    let before: Vec<u64> = bus.disks[0].disk().contents().collect();
    bus.write(0x108, u32::from(input.received) << 8);
    bus.write(0x118, 0x11);
    bus.write(0x134, u32::from(input.active));
    bus.write(0x138, 3);
    bus.poll();
    let writes = input.fises.iter().any(|fis| {
        Row::of(fis[2]).is_some_and(|row| {
            matches!(
                row.operation,
                Operation::Write { .. } | Operation::DataSetManagement | Operation::Queued(_)
            )
        })
    });
    // Data that a read puts over the list or the tables is a command as good as any.
    let reads =
        input.fises.iter().any(|fis| Row::of(fis[2]).is_some_and(|row| row.operation == Operation::Read));
    assert!(
        writes || reads || bus.disks[0].disk().contents().eq(before),
        "{:?} changed the disk",
        input.fises
    );
    assert!(bus.disks[0].disk().is_idle());
    // A reset ends whatever it was.
    bus.write(0x118, 0x10);
    bus.poll();
    assert_eq!(bus.read(0x118) & 0x8000, 0);
    bus.write(0x04, 1);
    bus.poll();
    assert_eq!(bus.read(0x04) & 1, 0);
    assert!(bus.function.device().hba().is_quiet());
}

struct Bus<'a> {
    function: &'a mut PciFunction<PciAhci<1>, 1>,
    memory: &'a Memory,
    disks: &'a mut [Handle],
}

impl Bus<'_> {
    fn write(&mut self, offset: u64, value: u32) {
        let _ = self.function.write(ABAR, offset, Width::Dword, u64::from(value), self.memory, self.disks);
    }

    fn read(&mut self, offset: u64) -> u64 {
        self.function.read(ABAR, offset, Width::Dword, self.memory, self.disks).value
    }

    fn poll(&mut self) {
        for _ in 0..65_536 {
            if !self.function.poll(self.memory, self.disks).again && self.disks[0].disk().is_idle() {
                return;
            }
        }
        panic!("the HBA never rests");
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let region = |base: u64, bytes: u32| {
        [&base.to_le_bytes()[..], &[0; 4], &bytes.wrapping_sub(1).to_le_bytes()].concat()
    };
    let input = |opcode: u8, features: u8, count: u8, regions: &[Vec<u8>]| {
        let mut fis = [0; 20];
        fis[..13].copy_from_slice(&[0x27, 0x80, opcode, features, 3, 0, 0, 0x40, 0, 0, 0, 0, count]);
        let mut flush = fis;
        flush[2] = 0xea;
        let options = [5 | (regions.len() as u32) << 16, 5];
        let input = Input {
            kind: Kind::WRITE_BACK,
            options,
            tables: [0, 0],
            fises: [fis, flush],
            active: 1,
            received: 0x40,
        };
        let mut bytes = Vec::new();
        input.put(&mut bytes);
        bytes.extend_from_slice(&regions.concat());
        bytes
    };
    let one = [region(0x5000, 1024)];
    let split = [region(0x5000, 100), region(0x6000, 924)];
    let mut seeds: Vec<Vec<u8>> = [0x25, 0x35, 0x3d, 0x24, 0x34]
        .iter()
        .flat_map(|op| [&one[..], &split[..]].map(|regions| input(*op, 0, 2, regions)))
        .collect();
    seeds.extend([0x60, 0x61].map(|op| input(op, 2, 0, &split)));
    seeds.extend(
        [0xe7, 0xec, 0x90, 0xe0, 0xe5, 0xb0, 0x2f, 0x06].map(|op| input(op, 1, 1, &[region(0x5000, 512)])),
    );
    // DMA over the list and over the tables.
    seeds.extend([0, TABLES].map(|base| input(0x25, 0, 2, &[region(base, 512), region(0x5000, 512)])));
    // SRST.
    let mut reset = input(0, 0, 0, &[]);
    let fises = reset.len() - 40 - 2;
    for (at, control) in [(fises, 4), (fises + 20, 0)] {
        reset[at + 1] = 0;
        reset[at + 15] = control;
    }
    seeds.push(reset);
    seeds
}
