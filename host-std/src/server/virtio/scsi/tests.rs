use std::time::{Duration, Instant};

use blk_core::storage::CacheMode;

use super::*;
use crate::backend::{Backend, FileBackend, FileOptions};
use crate::fault::Faulty;
use crate::server::images::Image;
use crate::server::vring::Region;

fn image(dir: &tempfile::TempDir, name: &str) -> Arc<dyn Backend> {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    Arc::new(FileBackend::open(path, &FileOptions::new(CacheMode::WriteBack)).unwrap())
}

/// The controller hears of a completion from [`Slot`] alone, and the guest from the controller.
#[test]
fn a_latch_is_kept_before_the_controller_hears_of_the_failure() {
    let dir = tempfile::TempDir::new().unwrap();
    let faulty: Arc<dyn Backend> = Arc::new(Faulty::new(image(&dir, "one"), "flush@1:eio".parse().unwrap()));
    let unit = |backend: &Arc<dyn Backend>| {
        Images::new(vec![Some(Image { key: 1 << 14 | 3, backend: Arc::clone(backend) })])
    };
    let region = Region::create(1, 128, 1).unwrap().0;
    let persistent = Arc::new(PersistentState::open(region.clone(), unit(&faulty)));
    let handle = Some(faulty.handle().unwrap());
    let mut slot = Slot { handle, counters: None, persistent: Some(persistent) };
    let memory = MappedMemory::default();
    let _ = slot.submit(&memory, Tag { slot: 0, generation: 0 }, Op::Flush, &[]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let completion = loop {
        match Storage::<MappedMemory>::poll(&mut slot, &memory) {
            Some(completion) => break completion,
            None => assert!(Instant::now() < deadline, "no completion"),
        }
    };
    assert!(completion.result.is_err());
    let successor = image(&dir, "two");
    drop(PersistentState::open(region, unit(&successor)));
    let why = successor.latched().map(|cause| (cause.what, cause.errno));
    assert_eq!(why, faulty.latched().map(|cause| (cause.what, cause.errno)));
    assert!(why.is_some(), "a server that comes after this one would believe the image");
}
