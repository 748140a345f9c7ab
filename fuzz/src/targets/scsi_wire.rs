//! SCSI's decoders: any command block, and any parameter list of MODE SELECT, UNMAP and WRITE SAME, on a quiet unit.

use std::ops::Range;

use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use scsi_model::command::{Against, Command, decode, find};
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Nexus, Outcome, Polled, SegmentList, Task,
    Transport,
};

use crate::disk::{Disk, Handle, Kind};
use crate::memory::Memory;
use crate::program::Seed as _;
use crate::record;

const SECTORS: u64 = 64;
/// Data goes to the guest at 0 and comes from it at `OUT`.
const OUT: u64 = 0x2000;
const MEMORY_BYTES: u64 = 0x4000;

record! {
    /// One command: the disk, its block and how much of it is given, and room for the data that comes in.
    pub struct Input { pub kind: Kind, pub cdb: [u8; 16], pub len: u8, pub in_bytes: u16, }
}

struct Flat;

impl Transport for Flat {
    fn segments(
        &mut self,
        _tag: u64,
        direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let base = if direction == Direction::Out { OUT } else { 0 };
        let len = (range.end - range.start) as u32;
        list.push(Segment::Guest { addr: GuestAddr(base + range.start), len }).map_err(|_| DataError)
    }
}

/// Runs one [`Input`]; the rest of the bytes are the data that goes out.
pub fn run(data: &[u8]) {
    let mut source = arbitrary::Unstructured::new(data);
    let Ok(input) = source.arbitrary::<Input>() else { return };
    let rest = source.take_rest();
    let rest = &rest[..rest.len().min((MEMORY_BYTES - OUT) as usize)];
    let cdb = Cdb::new(&input.cdb[..usize::from(input.len % 17)]);
    check_decoded(&cdb, input.len % 17);

    let memory = Memory::new(MEMORY_BYTES as usize);
    memory.put(OUT, rest);
    let mut disk = Disk::open(input.kind, SECTORS, 1).remove(0);
    disk.settle(&memory);
    let config = Config { naa: Some(0x5000_0000_0000_0001), ..Config::new("FUZZ", "fuzzed disk", "1", "S") };
    let mut unit =
        LogicalUnit::<2>::new(config, blk_core::storage::Storage::<Memory>::info(&disk)).expect("512");
    let ready = Task {
        tag: 0,
        nexus: Nexus::default(),
        attribute: Attribute::Simple,
        cdb: Cdb::new(&[0; 6]),
        data_out_bytes: 0,
        data_in_bytes: 0,
    };
    let _ = execute(&mut unit, &memory, &mut disk, ready);

    let in_bytes = u64::from(input.in_bytes) % (OUT + 1);
    memory.lend(0..in_bytes);
    let before: Vec<u64> = disk.disk().contents().collect();
    let task = Task { tag: 1, cdb, data_out_bytes: rest.len() as u64, data_in_bytes: in_bytes, ..ready };
    let (outcome, transferred) = execute(&mut unit, &memory, &mut disk, task);
    assert!(transferred <= in_bytes.max(rest.len() as u64));
    match outcome {
        Outcome::Good => {}
        Outcome::CheckCondition(sense) => {
            assert!(matches!(sense[0] & 0x7f, 0x70 | 0x72) && sense.len() >= 8);
            assert!(transferred == 0 || !matches!(decode(&cdb), Ok(Command::Write { .. })));
        }
        Outcome::Overrun => assert_eq!(transferred, 0),
        Outcome::Aborted => panic!("nobody aborted it"),
    }
    let writes = matches!(
        decode(&cdb),
        Ok(Command::Write { .. }
            | Command::WriteAndVerify { .. }
            | Command::WriteSame { .. }
            | Command::Unmap { .. }
            | Command::CompareAndWrite { .. }
            | Command::OrWrite { .. })
    );
    let changed = !disk.disk().contents().eq(before);
    assert!(writes || !changed, "{cdb:?} changed the disk");
}

fn execute(unit: &mut LogicalUnit<2>, memory: &Memory, disk: &mut Handle, task: Task) -> (Outcome, u64) {
    unit.enqueue(task).expect("the set is empty");
    let mut ended = None;
    for _ in 0..100_000 {
        match unit.poll(memory, disk, &mut Flat) {
            Polled::Ended(end) => {
                assert!(end.tag == task.tag && ended.is_none(), "it ends once");
                ended = Some((end.outcome, end.transferred_bytes));
            }
            Polled::Again => {}
            Polled::Idle => return ended.expect("a disk that is done leaves nothing waiting"),
        }
    }
    panic!("the unit never rests");
}

/// What a decoded command has to do with its bytes.
fn check_decoded(cdb: &Cdb, given: u8) {
    let Ok(command) = decode(cdb) else { return };
    assert_ne!(given, 0, "an empty command block is refused");
    assert_eq!(find(cdb).is_none(), matches!(command, Command::Unknown { .. }));
    let blocks = match command {
        Command::Read { blocks, .. } | Command::Write { blocks, .. } | Command::WriteAndVerify { blocks } => {
            blocks
        }
        Command::Verify { blocks, against: Against::Data | Against::OneBlock } => blocks,
        _ => return,
    };
    // READ(6) and WRITE(6): 21 bits of address, and a count of 0 is 256.
    if cdb.opcode() < 0x20 {
        assert!(blocks.lba < 1 << 21 && (1..=256).contains(&blocks.count));
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let input = |cdb: &[u8], data: &[u8]| {
        let mut block = [0; 16];
        block[..cdb.len()].copy_from_slice(cdb);
        let input = Input { kind: Kind::WRITE_BACK, cdb: block, len: cdb.len() as u8, in_bytes: 0x400 };
        let mut bytes = Vec::new();
        input.put(&mut bytes);
        bytes.extend_from_slice(data);
        bytes
    };
    let mut mode = [0; 24];
    (mode[4], mode[5]) = (0x08, 0x12);
    let mut mode_10 = [0; 40];
    (mode_10[7], mode_10[12], mode_10[14], mode_10[20], mode_10[21]) = (8, 0, 2, 0x0a, 0x0a);
    let mut unmap = [0; 40];
    (unmap[1], unmap[3], unmap[15], unmap[19], unmap[31], unmap[35]) = (38, 32, 3, 2, 9, 1);
    let mut seeds = vec![
        input(&[0x15, 0x10, 0, 0, 24, 0], &mode),
        input(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0], &mode_10),
        input(&[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &unmap),
        input(&[0x41, 0, 0, 0, 0, 3, 0, 0, 4, 0], &[7; 512]),
        input(&[0x93, 0x08, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0], &[0; 512]),
        input(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0], &[0; 1024]),
        input(&[0x2f, 0x02, 0, 0, 0, 3, 0, 0, 1, 0], &[0; 512]),
        input(&[0x0a, 0, 0, 3, 2, 0], &[5; 1024]),
        input(&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0], &[]),
        input(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[]),
        input(&[0xa3, 0x0c, 1, 0x2a, 0, 0, 0, 0, 1, 0, 0, 0], &[]),
        input(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]),
        input(&[0x1a, 0, 0x3f, 0xff, 0xff, 0], &[]),
        input(&[0x5a, 0x10, 0x08, 0, 0, 0, 0, 0, 0xff, 0], &[]),
    ];
    seeds.extend([0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2].map(|page| input(&[0x12, 1, page, 0, 0xff, 0], &[])));
    seeds
}
