//! However a driver cuts its buffers, a request comes to the same: in one piece each, which are kept, or in many, which are
//! looked up again.

use crate::machine::*;
use crate::rig::{AtOnce, BLOCK};
use scsi_model::front::virtio_scsi::REQUEST;

/// Where the request begins, with the data behind it, and where the response does.
const OUT: u64 = 0x1_0000 + 2 * 64 * 0x1000;
const IN: u64 = OUT + 0x1_0000;

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

    /// A command, its data, and the room for the device's.
    fn command(&mut self) -> (Vec<u8>, Vec<u8>, usize) {
        let (lba, blocks) = (self.below(16) as u8, 1 + self.below(4) as u8);
        let bytes = usize::from(blocks) * BLOCK;
        let data = |random: &mut Self, len: usize| vec![random.below(3) as u8; len];
        let excess = [0, 0, 0, 7][self.below(4) as usize];
        match self.below(9) {
            0 | 1 => (read10(lba, blocks).to_vec(), Vec::new(), bytes + excess),
            2 | 3 => (write10(lba, blocks).to_vec(), data(self, bytes + excess), 0),
            4 => (vec![0x2f, 0x02, 0, 0, 0, lba, 0, 0, blocks, 0], data(self, bytes), 0),
            5 => (vec![0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 1, 0, 0], data(self, 2 * BLOCK), 0),
            6 => (INQUIRY.to_vec(), Vec::new(), self.below(300) as usize),
            7 => (vec![0x41, 0, 0, 0, 0, lba, 0, 0, blocks, 0], data(self, BLOCK), 0),
            // Refused, with sense data.
            _ => (read10(lba, blocks).to_vec(), Vec::new(), self.below(bytes as u64) as usize),
        }
    }
}

/// How buffers are cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Header, data out, response, data in: a piece each.
    Each,
    /// A piece that is read and a piece that is written.
    Together,
    /// Anywhere.
    Random,
}

fn cut(at: u64, lens: [usize; 2], flags: u16, how: Cut, random: &mut Random) -> Vec<Piece> {
    let total: usize = lens.iter().sum();
    let mut ends: Vec<usize> = match how {
        Cut::Each => vec![lens[0], total],
        Cut::Together => vec![total],
        Cut::Random => {
            let count = random.below(6);
            (0..count).map(|_| random.below(total as u64) as usize).chain([total]).collect()
        }
    };
    ends.sort_unstable();
    let mut start = 0;
    let mut pieces = Vec::new();
    for end in ends {
        if end != start {
            pieces.push((at + start as u64, (end - start) as u32, flags));
        }
        start = end;
    }
    pieces
}

/// What a guest sees of each command, and the disk at the end.
fn program(seed: u64, how: Cut) -> (Vec<(Answer, Vec<u8>)>, Vec<u8>) {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].at_once = [AtOnce::None, AtOnce::All][(seed % 2) as usize];
    let mut random = Random(seed);
    let mut cuts = Random(!seed);
    let mut seen = Vec::new();
    for _ in 0..12 {
        let (cdb, out, room) = random.command();
        machine.put(OUT, &[&<Machine>::header(lun(0, 0), 0, 0, &cdb)[..], &out].concat());
        machine.put(IN, &vec![0xee; RESPONSE_BYTES + room + 8]);
        let mut pieces = cut(OUT, [HEAD_BYTES, out.len()], 0, how, &mut cuts);
        pieces.extend(cut(IN, [RESPONSE_BYTES, room], WRITE, how, &mut cuts));
        let head = machine.offer(REQUEST, &pieces);
        let answer = machine.expect(Sent { ring: REQUEST, head, response: IN, data: IN });
        seen.push((answer, machine.fetch(IN + RESPONSE_BYTES as u64, room + 8)));
    }
    (seen, machine.disks.remove(0).bytes)
}

#[test]
fn a_request_comes_to_the_same_however_it_is_cut() {
    let mut good = 0;
    for seed in 0..200 {
        let expected = program(seed, Cut::Each);
        good += expected.0.iter().filter(|(answer, _)| answer.is_good()).count();
        for how in [Cut::Together, Cut::Random] {
            assert!(program(seed, how) == expected, "seed {seed}, {how:?}");
        }
    }
    assert!(good > 1000, "{good}");
}
