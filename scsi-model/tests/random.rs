//! Random commands, completions, aborts and resets: nothing panics, and every task ends exactly once.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests"
)]

mod rig;

use std::collections::BTreeSet;

use blk_core::storage::{Cache, IoErrorKind};
use rig::{AtOnce, BLOCK, BUFFER, Disk, Rig, TAGS};
use scsi_model::command::TABLE;
use scsi_model::{Attribute, Cdb, ResetCause, Task};

/// SplitMix64: every seed is a good seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// A command of the table whose fields are mostly small, so that many are in range.
    fn cdb(&mut self) -> Vec<u8> {
        let row = &TABLE[self.below(TABLE.len() as u64) as usize];
        let mut cdb: Vec<u8> = row
            .usage
            .iter()
            .map(|mask| match self.below(8) {
                0 => self.below(256) as u8,
                1 | 2 => self.below(256) as u8 & mask,
                3 => 1 & mask,
                _ => 0,
            })
            .collect();
        cdb[0] = row.opcode();
        if let Some(action) = row.service_action {
            cdb[1] = action as u8;
        }
        cdb
    }

    fn attribute(&mut self) -> Attribute {
        match self.below(6) {
            0 => Attribute::Ordered,
            1 => Attribute::HeadOfQueue,
            _ => Attribute::Simple,
        }
    }
}

/// Walks for `steps` steps; whatever was enqueued has ended afterwards, and nothing ended that was not there.
fn walk(seed: u64, steps: u32) -> usize {
    let mut random = Random(seed);
    let mut disk =
        Disk::new([Cache::WriteBack, Cache::WriteThrough, Cache::Unsafe][random.below(3) as usize]);
    disk.info.fua = random.below(2) == 0;
    disk.info.read_only = random.below(8) == 0;
    disk.info.staging_bytes = [0, 512, 4096][random.below(3) as usize];
    disk.at_once = [AtOnce::None, AtOnce::All, AtOnce::Some(seed + 1)][random.below(3) as usize];
    let mut rig = Rig::on(disk);
    (rig.disk.held, rig.disk.room) = (true, 1 + random.below(4) as usize);
    rig.transport.piece = [100, 512, 4096][random.below(3) as usize];
    let mut pending = BTreeSet::new();
    let mut ended = 0;
    for step in 0..steps + 1000 {
        let draining = step >= steps;
        match random.below(16) {
            0..8 if !draining => {
                let Some(tag) = (0..TAGS as u64).find(|tag| !pending.contains(tag)) else { continue };
                let room = [0, 512, 4096, BUFFER as u64];
                let task = Task {
                    tag,
                    nexus: scsi_model::Nexus::default(),
                    attribute: random.attribute(),
                    cdb: Cdb::new(&random.cdb()),
                    data_out_bytes: room[random.below(4) as usize],
                    data_in_bytes: room[random.below(4) as usize],
                };
                let value = random.below(3) as u8;
                let at = tag as usize * BUFFER;
                rig.memory.0.borrow_mut()[at..at + BUFFER].fill(value);
                rig.unit.enqueue(task).unwrap();
                pending.insert(tag);
            }
            8 if !draining => _ = rig.unit.abort_task(random.below(TAGS as u64)),
            9 if random.below(8) == 0 && !draining => rig.unit.abort_task_set(scsi_model::Nexus::default()),
            9 if random.below(8) == 0 && !draining => rig.unit.reset(ResetCause::LogicalUnit),
            10 if random.below(4) == 0 && !draining => {
                rig.disk.errors.push_back(Some(IoErrorKind::Medium.into()));
            }
            _ if !rig.disk.waiting.is_empty() => {
                let index = random.below(rig.disk.waiting.len() as u64) as usize;
                rig.disk.release(&rig.memory, index);
            }
            _ => {}
        }
        for tag in rig.tags() {
            assert!(pending.remove(&tag), "seed {seed}: task {tag} ended twice");
            assert!(!rig.unit.contains(tag));
            ended += 1;
        }
        assert!(pending.iter().all(|tag| rig.unit.contains(*tag)), "seed {seed}: a task is forgotten");
        if draining && pending.is_empty() {
            assert!(rig.unit.is_idle() && !rig.unit.is_managing(), "seed {seed}");
            return ended;
        }
    }
    panic!("seed {seed}: {pending:?} never ended");
}

#[test]
fn every_task_ends_exactly_once() {
    let ended: usize = (0..200).map(|seed| walk(seed, 200)).sum();
    assert!(ended > 10_000, "{ended}");
}

/// How the commands of a seed end, one after the other, and what they leave in memory and on the disk.
fn program(seed: u64, at_once: AtOnce) -> Vec<(scsi_model::Outcome, u64, Vec<u8>, Vec<u8>)> {
    let mut random = Random(seed);
    let mut disk = Disk::new([Cache::WriteBack, Cache::WriteThrough][random.below(2) as usize]);
    disk.info.fua = random.below(2) == 0;
    disk.info.staging_bytes = [0, 512, 4096][random.below(3) as usize];
    disk.at_once = at_once;
    let mut rig = Rig::on(disk);
    rig.transport.piece = [100, 512, 4096][random.below(3) as usize];
    let mut ends = Vec::new();
    for _ in 0..20 {
        if random.below(8) == 0 {
            let later = random.below(3) as usize;
            rig.disk.errors = (0..later).map(|_| None).chain([Some(IoErrorKind::Medium.into())]).collect();
        }
        let out = vec![random.below(3) as u8; [0, 512, 4096, BUFFER][random.below(4) as usize]];
        let room = [0, 512, 4096, BUFFER as u64][random.below(4) as usize];
        rig.memory.0.borrow_mut()[..BUFFER].fill(0xee);
        rig.enqueue(0, random.attribute(), &random.cdb(), &out, room);
        let ended = rig.poll().pop().expect("it ends");
        rig.disk.errors.clear();
        let memory = rig.memory.0.borrow()[..4096].to_vec();
        ends.push((ended.outcome, ended.transferred_bytes, memory, rig.disk.bytes[..32 * BLOCK].to_vec()));
    }
    ends
}

/// What a storage does at once never gets a slot's state; the end is the same.
#[test]
fn a_storage_that_does_all_at_once_comes_to_the_same() {
    let mut good = 0;
    for seed in 0..200 {
        let expected = program(seed, AtOnce::None);
        good += expected.iter().filter(|(outcome, ..)| *outcome == scsi_model::Outcome::Good).count();
        for at_once in [AtOnce::All, AtOnce::Some(seed + 1)] {
            assert!(program(seed, at_once) == expected, "seed {seed}, {at_once:?}");
        }
    }
    assert!(good > 400, "{good}");
}
