//! Looking for packets: as long as it pays, and now and then to see whether it would.

use crate::netboot::tftp::spin::Spin;

#[test]
fn looking_in_vain_stops_and_is_tried_again_now_and_then() {
    let mut spin = Spin::default();
    let mut looks = 0;
    for _ in 0..6400 {
        if spin.worthwhile() {
            looks += 1;
            spin.looked(false);
        }
    }
    assert_eq!(looks, 100);
}

#[test]
fn looking_goes_on_while_one_in_three_finds_something() {
    let mut spin = Spin::default();
    while !spin.worthwhile() {}
    (0..10).for_each(|_| spin.looked(true));
    for round in 0..1000 {
        assert!(spin.worthwhile());
        spin.looked(round % 3 == 0);
    }
}
