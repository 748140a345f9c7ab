//! virtio-scsi: what a successor has to know of a unit, and task management.

use host_std::server::{Lun, ScsiOptions};
use host_std::testing::client::{ClientError, Command, Scsi, ScsiPayload, cdb};
use scsi_model::front::virtio_scsi::Address;
use scsi_model::front::virtio_scsi::wire::{Response, function};

use super::*;

const UNIT: Address = Address { target: 0, lun: 0 };

fn serve(disk: &Disk, faults: &str) -> Served {
    disk.serve_with(faults, |backend| {
        let config = scsi_model::Config::new("TEST", "DISK", "1", "");
        let luns = vec![Lun { target: 0, lun: 0, config, backend }];
        Server::scsi(&ScsiOptions::default(), luns).unwrap()
    })
}

/// A driver, whose unit has said that it was just switched on.
fn connect(disk: &Disk) -> Scsi {
    let mut host = Scsi::connect(disk.path("socket"), options(3)).unwrap();
    host.ready(UNIT).unwrap();
    host
}

#[test]
fn the_latch_of_a_unit_outlives_a_server() {
    let disk = Disk::new();
    let served = serve(&disk, "flush@1:eio");
    let mut host = connect(&disk);
    assert!(served.backend.latched().is_none());
    assert!(matches!(host.flush(UNIT), Err(ClientError::Refused { .. })));
    served.kill();
    let served = serve(&disk, "");
    assert!(served.backend.latched().is_none(), "nobody has told it yet");
    host.session_mut().reconnect().unwrap();
    assert!(served.backend.latched().is_some());
    assert!(matches!(host.flush(UNIT), Err(ClientError::Refused { .. })));
    drop(host);
    // It was that client's to say. The next one was told of nothing.
    let mut host = connect(&disk);
    assert!(served.backend.latched().is_none());
    host.flush(UNIT).unwrap();
}

fn submit_write(host: &mut Scsi, lba: u64) -> Ticket {
    let block = cdb::write_16(lba, 1, false);
    let ticket = host.submit(Scsi::QUEUE, &Command::new(UNIT, &block, ScsiPayload::Out(&[1; 512]))).unwrap();
    host.session_mut().kick(Scsi::QUEUE).unwrap();
    ticket
}

/// What a function has aborted is answered before the function is.
#[test]
fn a_task_is_found_and_aborted_and_a_reset_ends_them_all() {
    let disk = Disk::new();
    let served = serve(&disk, "write:300ms");
    let mut host = connect(&disk);
    let task = submit_write(&mut host, 0);
    served.until_in_flight(usize::from(Scsi::QUEUE), 1);
    let succeeded = Response::FunctionSucceeded as u8;
    assert_eq!(host.manage(function::QUERY_TASK, UNIT, Some(task)).unwrap(), succeeded);
    assert_eq!(host.manage(function::ABORT_TASK, UNIT, Some(task)).unwrap(), Response::Ok as u8);
    let done = host.poll(Scsi::QUEUE).unwrap().expect("it is answered");
    assert_eq!((done.ticket, done.response), (task, Response::Aborted as u8));
    assert_eq!(host.manage(function::QUERY_TASK, UNIT, Some(task)).unwrap(), Response::Ok as u8);
    let tasks: Vec<_> = (0..3).map(|lba| submit_write(&mut host, lba)).collect();
    served.until_in_flight(usize::from(Scsi::QUEUE), 3);
    assert_eq!(host.manage(function::LOGICAL_UNIT_RESET, UNIT, None).unwrap(), Response::Ok as u8);
    for _ in &tasks {
        let done = host.poll(Scsi::QUEUE).unwrap().expect("it is answered");
        assert!(tasks.contains(&done.ticket) && done.response == Response::Reset as u8, "{done:?}");
    }
    let command = Command::new(UNIT, &cdb::TEST_UNIT_READY, ScsiPayload::None);
    let Err(ClientError::Refused { done, .. }) = host.perform(&command) else { panic!("no unit attention") };
    assert_eq!(done.sense.map(|sense| (sense.key, sense.code.0)), Some((6, 0x29)), "reset");
    host.ready(UNIT).unwrap();
    let nobody = Address { target: 9, lun: 0 };
    assert_eq!(host.manage(function::ABORT_TASK_SET, nobody, None).unwrap(), Response::BadTarget as u8);
}
