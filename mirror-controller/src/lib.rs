//! Hawser's mirror controller: watch, world, plan, apply; catalog and discovery
