//! Messages of the protocol (vhost-user, "Front-end message types"), and inputs made of them.

use super::descriptors::{FULL, MEMORY, MEMORY_BYTES, OWN_END, SHORT, SIGNAL};
use super::{CUT_MEMORY, KICK, NEXT_CLIENT, RAW, READ_REPLIES, WAIT, WRITE_MEMORY};

pub(super) const HEADER_BYTES: usize = 12;

const GET_FEATURES: u8 = 1;
const SET_FEATURES: u8 = 2;
const SET_OWNER: u8 = 3;
const SET_MEM_TABLE: u8 = 5;
const SET_VRING_NUM: u8 = 8;
const SET_VRING_ADDR: u8 = 9;
const SET_VRING_BASE: u8 = 10;
const GET_VRING_BASE: u8 = 11;
const SET_VRING_KICK: u8 = 12;
const SET_VRING_CALL: u8 = 13;
const SET_PROTOCOL_FEATURES: u8 = 16;
const SET_VRING_ENABLE: u8 = 18;
const SET_BACKEND_REQ_FD: u8 = 21;
const GET_CONFIG: u8 = 24;
const SET_CONFIG: u8 = 25;
const SET_INFLIGHT_FD: u8 = 32;
const RESET_DEVICE: u8 = 34;
const ADD_MEM_REG: u8 = 37;
const REM_MEM_REG: u8 = 38;

/// VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_BLK_F_FLUSH.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 9;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;
/// Version 1, in a header's flags.
const VERSION: u32 = 1;

// Where the ring is.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const SIZE: u32 = 16;

/// A message. The lowest bit of `flags` asks for a reply.
pub(super) fn message(request: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let flags = VERSION | u32::from(flags & 1) << 3;
    let header = [request.into(), flags, body.len() as u32].map(u32::to_ne_bytes).concat();
    [&header, body].concat()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

/// Requests with their bodies and the kinds of their descriptors.
fn prepared() -> Vec<(u8, Vec<u8>, u8)> {
    let table = longs(&[1, 0, MEMORY_BYTES, 0, 0]);
    let ring = [words(&[0, 0]), longs(&[DESCRIPTORS, USED, AVAILABLE, 0])].concat();
    vec![
        (SET_OWNER, Vec::new(), 0),
        (SET_FEATURES, longs(&[FEATURES]), 0),
        (SET_PROTOCOL_FEATURES, longs(&[PROTOCOL]), 0),
        (SET_MEM_TABLE, table, MEMORY),
        (SET_VRING_NUM, words(&[0, SIZE]), 0),
        (SET_VRING_BASE, words(&[0, 0]), 0),
        (SET_VRING_ADDR, ring, 0),
        (SET_VRING_CALL, longs(&[0]), SIGNAL),
        (SET_VRING_KICK, longs(&[0]), SIGNAL),
        (SET_VRING_ENABLE, words(&[0, 1]), 0),
    ]
}

/// What a client does first that means well.
pub(super) fn preparation() -> Vec<(Vec<u8>, u8)> {
    let message = |(request, body, kind): (u8, Vec<u8>, u8)| (message(request, 0, &body), kind);
    prepared().into_iter().map(message).collect()
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let send = |request: u8, body: Vec<u8>, kind: u8| (kind, [vec![request, 1], body].concat());
    let memory =
        |at: u64, bytes: Vec<u8>| (WRITE_MEMORY, [(at as u16).to_le_bytes().to_vec(), bytes].concat());
    let descriptor = |index: u64, addr: u64, len: u32, flags: u16, next: u16| {
        let rest = [flags.to_ne_bytes(), next.to_ne_bytes()].concat();
        memory(DESCRIPTORS + 16 * index, [longs(&[addr]), words(&[len]), rest].concat())
    };
    // A read of a sector: header, data, status (VIRTIO 1.3, 5.2.6).
    let request = |kind: u32, bytes: u32| {
        vec![
            memory(0x3000, [words(&[kind, 0]), longs(&[0])].concat()),
            descriptor(0, 0x3000, 16, 1, 1),
            descriptor(1, 0x4000, bytes, if kind == 1 { 1 } else { 3 }, 2),
            descriptor(2, 0x5000, 1, 2, 0),
            memory(AVAILABLE, [0_u16, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect()),
            (KICK, Vec::new()),
        ]
    };
    let stop = || send(GET_VRING_BASE, words(&[0, 0]), 0);
    let region = || longs(&[0, 0x10_0000, 0x1000, 0x10_0000, 0]);
    let config = |offset: u32, bytes: u32| [words(&[offset, bytes, 0]), vec![0; bytes as usize]].concat();
    let next = |prepared: u8| (NEXT_CLIENT, vec![prepared]);
    let inflight =
        || [longs(&[0x400, 0]), [2_u16, 16].iter().flat_map(|word| word.to_ne_bytes()).collect()].concat();
    let programs: Vec<(u8, Vec<(u8, Vec<u8>)>)> = vec![
        (0, prepared().into_iter().map(|(request, body, kind)| send(request, body, kind)).collect()),
        (1, [request(0, 512), vec![(WAIT, Vec::new()), stop(), (READ_REPLIES, Vec::new())]].concat()),
        (1, [request(1, 4096), vec![stop(), next(1)], request(4, 0)].concat()),
        // The memory goes away under a request.
        (1, [vec![(CUT_MEMORY, vec![0, 0x30])], request(0, 512), vec![next(1)], request(0, 512)].concat()),
        (1, vec![send(SET_VRING_CALL, longs(&[0]), FULL), send(SET_VRING_KICK, longs(&[0]), FULL), stop()]),
        (1, vec![send(SET_BACKEND_REQ_FD, Vec::new(), OWN_END), send(SET_VRING_KICK, longs(&[0]), OWN_END)]),
        (
            0,
            vec![
                send(SET_MEM_TABLE, longs(&[1, 0, MEMORY_BYTES, 0, 0]), SHORT),
                next(0),
                send(GET_FEATURES, vec![], 0),
            ],
        ),
        (
            1,
            vec![
                send(ADD_MEM_REG, region(), SHORT),
                send(ADD_MEM_REG, region(), MEMORY),
                send(REM_MEM_REG, region(), 0),
            ],
        ),
        (
            1,
            vec![
                send(GET_CONFIG, config(0, 60), 0),
                send(SET_CONFIG, config(32, 1), 0),
                send(RESET_DEVICE, vec![], 0),
            ],
        ),
        (
            1,
            vec![stop(), send(SET_INFLIGHT_FD, inflight(), MEMORY), send(SET_VRING_KICK, longs(&[0x100]), 0)],
        ),
        (1, vec![(RAW, vec![1, 0, 0]), next(0), (RAW, message(GET_FEATURES, 0, &[0; 40])), next(1), stop()]),
    ];
    let encode = |(start, steps): (u8, Vec<(u8, Vec<u8>)>)| {
        let step = |(what, bytes): (u8, Vec<u8>)| [&[bytes.len() as u8, what][..], &bytes].concat();
        [vec![start], steps.into_iter().flat_map(step).collect()].concat()
    };
    programs.into_iter().map(encode).collect()
}
