//! Many nodes, and how they come to know each other.

use wgmesh_sim::churn::Churn;
use wgmesh_sim::scale::Scale;

use crate::fleet::{millis, mins, secs};

/// Goals of issue "find anyone", 3, at a size that tests can afford; `cargo xtask sim --knowledge` shows others.
#[test]
fn sixty_nodes_know_each_other_after_a_start_a_change_and_a_partition_and_say_little_at_rest() {
    let mut scale = Scale::new(1, 60);
    (0..60).for_each(|node| scale.start(node));
    let cold = scale.run_until(mins(2), millis(250), Scale::all_know_all).expect("they meet");
    scale.run_for(mins(2));
    let before = scale.sent();
    scale.run_for(mins(5));
    let bytes = scale.sent().gossip - before.gossip;
    assert!(bytes / 60 / 300 <= 50, "{} B/s per node", bytes / 60 / 300);
    scale.change(7);
    let change = scale.run_until(mins(2), millis(250), Scale::all_know_all).expect("they hear of it");
    scale.partition(|node| u32::from(node % 2 == 0));
    scale.run_for(mins(30));
    assert!(scale.held(0, 1).is_none() && scale.held(0, 2).is_some(), "the other half is forgotten");
    scale.partition(|_| 0);
    let healed = scale.run_until(mins(5), millis(250), Scale::all_know_all).expect("they meet again");
    assert!(cold <= secs(60) && change <= secs(40), "{cold:?}, {change:?}, {healed:?}");
}

/// Issue "find anyone", 5: no zombie, no lost node, no growth; `cargo xtask sim --churn 24h` goes on for a day.
#[test]
fn nodes_that_come_and_go_for_an_hour_leave_no_zombie_and_lose_nobody() -> Result<(), String> {
    let mut churn = Churn::new(1, 24);
    churn.run_for(mins(60))?;
    println!("{}", churn.summary());
    Ok(())
}
