//! Whatever happens in whatever order: once it stops, the mesh is whole again and rests.

use wgmesh_core::mesh::Stop;
use wgmesh_sim::host::HostPlan;
use wgmesh_sim::kernel::Sabotage;
use wgmesh_sim::network::{Conditions, HostId};
use wgmesh_sim::world::Violation;

use crate::fleet::{Fleet, millis, mins, secs};

const SEEDS: u64 = 20;
const NODES: usize = 6;
const OPERATIONS: usize = 25;

#[test]
fn after_any_operations_the_mesh_is_whole_and_rests() -> Result<(), Violation> {
    for seed in 0..SEEDS {
        let mut fleet = Fleet::starting(seed, NODES, &HostPlan::default(), Conditions::CLEAN)?;
        for _ in 0..OPERATIONS {
            operate(&mut fleet)?;
            let pause = fleet.world.random().up_to(secs(40));
            fleet.world.run_for(pause)?;
        }
        calm(&mut fleet)?;
        // Sessions whose ends disagree are found dead by WireGuard after three minutes, and then retried.
        fleet.world.run_until_meshed(mins(4))?;
        fleet.world.run_for(mins(1))?;
        fleet.world.check_quiet(mins(1))?;
    }
    Ok(())
}

fn operate(fleet: &mut Fleet) -> Result<(), Violation> {
    let Fleet { world, lan, nodes } = fleet;
    let (node, other) = (world.random().pick(nodes), world.random().pick(nodes));
    let key = world.host(other).public_key();
    match world.random().below(14) {
        0 | 1 => world.start(node),
        2 => world.stop(node, Stop::Withdraw),
        3 => world.stop(node, Stop::Handover),
        4 => {
            world.crash(node);
            Ok(())
        }
        5 => {
            world.reboot(node);
            world.start(node)
        }
        6 => {
            world.change(node, |host| host.disk.cache.clear());
            Ok(())
        }
        7 => {
            let cut = world.random().below(NODES as u64);
            world.partition(*lan, |HostId(number)| u32::from((number as u64) < cut));
            Ok(())
        }
        8 => {
            world.partition(*lan, |_| 0);
            Ok(())
        }
        9 => {
            let loss = world.random().below(4) as f64 / 10.0;
            let conditions = Conditions { loss, duplication: loss, jitter: millis(30), ..Conditions::CLEAN };
            world.set_conditions(*lan, conditions);
            Ok(())
        }
        10 => world.set_link(*lan, node, false),
        11 => world.set_link(*lan, node, true),
        12 => world.sabotage(node, &Sabotage::RemovePeer(key)),
        _ => world.sabotage(node, &Sabotage::DeleteLink),
    }
}

/// Ends every trouble and starts every daemon.
fn calm(fleet: &mut Fleet) -> Result<(), Violation> {
    let Fleet { world, lan, nodes } = fleet;
    world.set_conditions(*lan, Conditions::CLEAN);
    world.partition(*lan, |_| 0);
    for &node in &*nodes {
        world.set_link(*lan, node, true)?;
        world.start(node)?;
    }
    Ok(())
}
