//! ATA's decoders: any task file, and any PRD table and parameter data behind it, on a quiet channel.

use ata_model::command::{Addressing, Command, Geometry, Operation, Protocol, Row, decode};
use ata_model::drive::DriveConfig;
use ata_model::front::{PciIde, PciIdeChip, PciIdeMode};
use ata_model::wire::{Pair, TaskFile};
use blk_core::bus::{Device as _, Region, Width};
use blk_core::pci::{MsixOwner, PciFunction};

use crate::disk::{Disk, Event, Handle, Kind};
use crate::memory::Memory;
use crate::program::Seed as _;
use crate::record;

const SECTORS: u64 = 64;
const MEMORY_BYTES: u64 = 0x8000;
const COMMAND: Region = Region::Bar(0);
const BUS_MASTER: Region = Region::Bar(4);

record! {
    /// One command.
    pub struct Input {
        /// The disk.
        pub kind: Kind,
        /// Features, Count, LBA Low, Mid, High: previous and current.
        pub registers: [[u8; 2]; 5],
        /// Device.
        pub device: u8,
        /// Command.
        pub command: u8,
        /// The bus master's command register.
        pub bus_master: u8,
        /// Where the PRD table is, in dwords.
        pub table: u16,
        /// INITIALIZE DEVICE PARAMETERS and SET MULTIPLE MODE before it.
        pub geometry: [u8; 3],
    }
}

/// Runs one [`Input`]; the rest of the bytes lie in memory from address 0 on, and go through the Data register.
pub fn run(data: &[u8]) {
    let mut source = arbitrary::Unstructured::new(data);
    let Ok(input) = source.arbitrary::<Input>() else { return };
    let rest = source.take_rest();
    check_decoded(&input);
    let memory = Memory::new(MEMORY_BYTES as usize);
    memory.put(0, rest);
    memory.unguard();
    let mut disks = Disk::open(input.kind, SECTORS, 1);
    let drives = [Some(DriveConfig::new("FUZZED DISK", "1")), None, None, None];
    let device = PciIde::new(drives, PciIdeChip::Piix3, PciIdeMode::Compatibility);
    let mut function = PciFunction::new(device, MsixOwner::Function);
    let [heads, sectors, multiple] = input.geometry;
    disks[0].settle(&memory);
    let mut bus = Bus { function: &mut function, memory: &memory, disks: &mut disks };
    bus.write(Region::Config, 0x04, Width::Word, 5);
    bus.command(&[(2, sectors), (6, heads & 0x0f), (7, 0x91)]);
    bus.command(&[(2, multiple), (7, 0xc6)]);
    let before: Vec<u64> = bus.disks[0].disk().contents().collect();
    bus.write(BUS_MASTER, 4, Width::Dword, u64::from(input.table) * 4 % MEMORY_BYTES);
    let direction = u64::from(input.bus_master & 0x08);
    bus.write(BUS_MASTER, 0, Width::Byte, direction);
    for (offset, bytes) in (1..).zip(input.registers) {
        bytes.iter().for_each(|byte| bus.write(COMMAND, offset, Width::Byte, u64::from(*byte)));
    }
    // Device 1 is not there.
    bus.command(&[(6, input.device & !0x10), (7, input.command)]);
    bus.write(BUS_MASTER, 0, Width::Byte, direction | u64::from(input.bus_master & 1));
    bus.poll();
    bus.move_data(rest);
    // A bus master that never starts leaves a DMA command busy, and nothing else does.
    let status = bus.status();
    let dma =
        Row::of(input.command).is_some_and(|row| matches!(row.protocol, Protocol::DmaIn | Protocol::DmaOut));
    assert!(status & 0x80 == 0 || dma && input.bus_master & 1 == 0, "{:#04x}: {status:#04x}", input.command);
    assert_eq!(status & 0x08, 0, "all data has moved");
    let writes = Row::of(input.command)
        .is_some_and(|row| matches!(row.operation, Operation::Write { .. } | Operation::DataSetManagement));
    assert!(writes || bus.disks[0].disk().contents().eq(before), "{:#04x} changed the disk", input.command);
    // A reset ends whatever it was.
    bus.write(Region::Bar(1), 2, Width::Byte, 4);
    bus.write(Region::Bar(1), 2, Width::Byte, 0);
    bus.poll();
    assert_eq!(bus.status() & 0x88, 0);
    assert!(bus.disks[0].disk().is_idle());
}

struct Bus<'a> {
    function: &'a mut PciFunction<PciIde, 1>,
    memory: &'a Memory,
    disks: &'a mut [Handle],
}

impl Bus<'_> {
    fn write(&mut self, region: Region, offset: u64, width: Width, value: u64) {
        let _ = self.function.write(region, offset, width, value, self.memory, self.disks);
    }

    fn command(&mut self, registers: &[(u64, u8)]) {
        for (offset, value) in registers {
            self.write(COMMAND, *offset, Width::Byte, u64::from(*value));
        }
        self.poll();
    }

    fn poll(&mut self) {
        for _ in 0..4096 {
            if !self.function.poll(self.memory, self.disks).again && self.disks[0].disk().is_idle() {
                return;
            }
        }
        panic!("the channel never rests");
    }

    fn status(&mut self) -> u64 {
        self.function.read(COMMAND, 7, Width::Byte, self.memory, self.disks).value
    }

    /// Moves blocks for as long as the drive asks, whichever way they go.
    fn move_data(&mut self, data: &[u8]) {
        let mut words =
            data.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes")));
        let mut moved = 0_u64;
        while self.status() & 0x88 == 0x08 {
            let word = words.next().unwrap_or(0);
            self.function.read(COMMAND, 0, Width::Dword, self.memory, self.disks);
            self.write(COMMAND, 0, Width::Dword, u64::from(word));
            moved += 4;
            assert!(moved <= 65_536 * 512, "more data than any command moves");
            if moved.is_multiple_of(512) {
                self.poll();
            }
        }
        self.disks[0].happen(self.memory, Event::Prompt { on: true });
    }
}

/// What a decoded command has to do with its registers.
fn check_decoded(input: &Input) {
    let [features, count, lba_low, lba_mid, lba_high] =
        input.registers.map(|[previous, current]| Pair { current, previous });
    let (device, command) = (input.device, input.command);
    let task = TaskFile { features, count, lba_low, lba_mid, lba_high, device, command };
    let geometry = Geometry::new(input.geometry[0], input.geometry[1]).unwrap_or(Geometry::DEFAULT);
    let Ok((row, decoded)) = decode(&task, geometry) else { return };
    assert_eq!(row.opcode, command);
    let (Command::Read(blocks) | Command::Write { blocks, .. } | Command::Verify(blocks)) = decoded else {
        return;
    };
    let (lba_max, count_max) = match row.addressing {
        Addressing::Lba48 => (1 << 48, 65_536),
        _ => (1 << 28, 256),
    };
    assert!(blocks.lba < lba_max && (1..=count_max).contains(&blocks.count), "{decoded:?}");
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let input = |command, features, count, data: &[u8]| {
        let registers = [[0, features], [0, count], [0, 3], [0, 0], [0, 0]];
        let bus_master = if matches!(command, 0xc8 | 0x25) { 9 } else { 1 };
        let (kind, geometry) = (Kind::WRITE_BACK, [15, 63, 2]);
        let input = Input { kind, registers, device: 0x40, command, bus_master, table: 0, geometry };
        let mut bytes = Vec::new();
        input.put(&mut bytes);
        bytes.extend_from_slice(data);
        bytes
    };
    let prd = |base: u32, bytes: u16, end: u16| {
        [&base.to_le_bytes()[..], &bytes.to_le_bytes(), &end.to_le_bytes()].concat()
    };
    let one = prd(0x1000, 1024, 0x8000);
    let split = [prd(0x1000, 100, 0), prd(0x2000, 924, 0x8000)].concat();
    let short = prd(0x1000, 512, 0x8000);
    let range = [&prd(16, 512, 0x8000)[..], &[0; 8], &[3, 0, 0, 0, 0, 0, 2, 0]].concat();
    let mut seeds: Vec<Vec<u8>> = [0xc8, 0x25, 0xca, 0x35, 0x3d]
        .iter()
        .flat_map(|op| [&one, &split, &short].map(|table| input(*op, 0, 2, table)))
        .collect();
    seeds
        .extend([0x20, 0x24, 0x29, 0x30, 0x34, 0x39, 0xce, 0xc4, 0xc5].map(|op| input(op, 0, 2, &[9; 1024])));
    seeds.extend(
        [0xe7, 0xea, 0xec, 0x90, 0xe0, 0xe5, 0xe6, 0x10, 0x70, 0x40, 0xf8, 0x27]
            .map(|op| input(op, 0, 1, &[])),
    );
    seeds.extend([0x02, 0x82, 0xaa, 0x55, 0x03].map(|feature| input(0xef, feature, 0x45, &[])));
    seeds.extend([
        input(0x06, 1, 1, &range),
        input(0x2f, 0, 1, &[]),
        input(0xb0, 0xda, 0, &[]),
        input(0xb0, 0xd0, 0, &[]),
    ]);
    seeds
}
