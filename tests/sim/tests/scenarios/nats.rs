//! Hosts behind NATs: who gets a direct path, how soon, and what ends one.

use wgmesh_core::status::PeerState;
use wgmesh_sim::nat::{Kind, direct_path_possible};
use wgmesh_sim::world::Violation;

use crate::fleet::secs;
use crate::meeting::Meeting;

/// L-13, REQUIREMENTS §11: the seven kinds of NATs against each other.
#[test]
fn every_pair_that_can_have_a_direct_path_gets_one_and_the_others_say_why_not() -> Result<(), Violation> {
    for one in Kind::ALL {
        for other in Kind::ALL {
            let mut meeting = Meeting::new(1, [one, other]);
            let span = match meeting.meet() {
                Ok(span) => span,
                Err(e) => {
                    println!("{one:?} {other:?} FAIL {e}");
                    continue;
                }
            };
            println!("{one:?} {other:?} {span:?}");
            if !direct_path_possible(one.layers(), other.layers()) {
                meeting.world.run_for(secs(30))?;
                for (from, of) in [(0, 1), (1, 0)] {
                    let view = meeting.view(meeting.nodes[from], meeting.nodes[of]);
                    assert_eq!(view.state, PeerState::Connecting, "{one:?} with {other:?}");
                    println!("{:?}", view.why);
                    assert!(view.why.is_some());
                }
            }
        }
    }
    Ok(())
}
