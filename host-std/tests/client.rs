//! The vhost-user client against a server that is not ours: QEMU's storage daemon. What passes here can be demanded of
//! our own.

mod serving;

use std::path::PathBuf;

use host_std::testing::client::{Blk, ClientError, EVENT_IDX, INDIRECT_DESC, Options, Payload, Request};
use serving::Server;
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 16 << 20;

fn disk(options: Options) -> Option<(TempDir, Server, Blk)> {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(IMAGE_BYTES).unwrap();
    let socket: PathBuf = dir.path().join("s");
    let Some(server) = Server::qemu_storage_daemon(&socket, &image, options.queues) else {
        eprintln!("not shown: qemu-storage-daemon is not installed");
        return None;
    };
    let disk = Blk::connect(&socket, options).unwrap();
    Some((dir, server, disk))
}

/// Every way to lay out a ring.
fn layouts() -> impl Iterator<Item = Options> {
    [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX].into_iter().flat_map(|without| {
        [4096, 128 << 10]
            .map(|segment_bytes| Options { segment_bytes, ..Options::default() }.without(without))
    })
}

#[test]
fn reads_back_what_was_written_in_every_layout_of_the_ring() {
    for options in layouts() {
        let Some((_dir, _server, mut disk)) = disk(options) else { return };
        assert_eq!(disk.sectors(), IMAGE_BYTES / 512);
        let data: Vec<u8> = (0..64 << 10).map(|at: u32| (at / 512) as u8 ^ at as u8).collect();
        let mut back = vec![0; data.len()];
        disk.write(7, &data).unwrap();
        disk.flush().unwrap();
        disk.read(7, &mut back).unwrap();
        assert_eq!(back, data);
        disk.write_zeroes(8, 3, false).unwrap();
        disk.discard(64, 8).unwrap();
        disk.read(7, &mut back).unwrap();
        assert!(back[512..2048].iter().all(|&byte| byte == 0) && back[2048..3072] == data[2048..3072]);
        let past = disk.read(IMAGE_BYTES / 512, &mut back).unwrap_err();
        assert!(matches!(past, ClientError::Failed { status: 1, .. }), "{past}");
    }
}

#[test]
fn keeps_a_ring_full_and_gets_every_request_back_once() {
    for options in layouts() {
        let direct = options.features & INDIRECT_DESC == 0;
        let depth = if direct { 16 } else { 128 };
        let Some((_dir, _server, mut disk)) = disk(Options { size: 128, ..options }) else { return };
        for at in 0..4000_u64 {
            if disk.session().in_flight(0) == depth {
                assert!(disk.wait(0).unwrap().is_ok());
            }
            let sector = at * 8 % (IMAGE_BYTES / 512);
            let request = match at % 3 {
                0 => Request::Read { sector, bytes: 4096 },
                1 => Request::Write { sector, data: Payload::Whatever(4096) },
                _ => Request::Flush,
            };
            disk.submit(0, request).unwrap();
        }
        while disk.session().in_flight(0) != 0 {
            assert!(disk.wait(0).unwrap().is_ok());
        }
        let counts = disk.session().counts(0);
        assert_eq!((counts.submitted, counts.completed), (4000, 4000));
        assert_eq!(disk.session_mut().stop_ring(0).unwrap(), 4000);
    }
}
