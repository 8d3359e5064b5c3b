"""Where recordings come from: generated scenes, SONYC-UST, a DVC repository; never what is made of them."""
